"""The reference outputs in ``tests/data`` and the deterministic fill behind them.

Every entry of the reference's state dict is filled by a hash of its key and index, so that the values are the same on
every machine; the files keep shapes, statistics and evenly spaced samples of what the reference made of them.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parents[1] / 'data'


def load(name: str) -> dict:
    return json.loads((DATA / f'{name}.json').read_text())


def uniform(key: str, count: int) -> np.ndarray:
    """Return float64 values in [0, 1) from splitmix64 over the index, seeded by the CRC of the key."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over='ignore'):
        state = np.arange(count, dtype=np.uint64) + np.uint64(zlib.crc32(key.encode())) * golden
        state = state * golden + golden
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) / 2.0**53


def entry(key: str, shape: list[int]) -> torch.Tensor:
    """Return the value of one state-dict entry: norms near 0.5, biases near 0, kernels of variance 1 / fan-in."""
    if key.endswith('num_batches_tracked'):
        return torch.zeros(shape, dtype=torch.int64)
    values = uniform(key, int(np.prod(shape))).reshape(shape)
    if key.endswith('running_var'):
        values = values + 0.5
    elif len(shape) == 1 and key.endswith('weight'):
        values = 0.2 + 0.5 * values
    elif len(shape) == 1:
        values = 0.2 * (values - 0.5)
    else:
        values = (values - 0.5) * 2 * np.sqrt(3.0 / np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def state_dict(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {key: entry(key, shape) for key, shape in shapes.items()}


def image(shape: list[int]) -> torch.Tensor:
    """Return the input of a case: float32 in [-2, 2)."""
    values = 4 * (uniform('image', int(np.prod(shape))).reshape(shape) - 0.5)
    return torch.from_numpy(values.astype(np.float32))


def assert_matches(output: torch.Tensor, reference: dict) -> None:
    """Compare shape, samples, mean and spread with a reference, to 1e-4 of its largest magnitude."""
    values = output.detach().double().numpy()
    assert list(values.shape) == reference['shape']
    tolerance = 1e-4 * reference['absmax']
    np.testing.assert_allclose(values.ravel()[reference['index']], reference['value'], rtol=0, atol=tolerance)
    np.testing.assert_allclose(values.mean(), reference['mean'], rtol=0, atol=tolerance)
    np.testing.assert_allclose(values.std(), reference['std'], rtol=0, atol=tolerance)
