"""Parts of a model as files for phones, compared with PyTorch: ``tools/export.py --to coreml|executorch``."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.atomic_files import saving
from ..common.errors import UsageError
from ..runtimes.agreement import check_agreement
from ..runtimes.coreml import INPUT, Package, convert, require_coremltools, saved_package
from ..runtimes.executorch import ExecuTorch, lower, require_executorch
from ..version import __version__
from .phone_parts import Part, build_part

SUFFIXES = {'coreml': '.mlpackage', 'executorch': '.pte'}
# How much outputs may differ from PyTorch's, of the largest magnitude of each. Random weights round worst in float16.
PROGRAM_TOLERANCE = 1e-4
PACKAGE_TOLERANCES = {torch.float32: 2e-2, torch.float16: 5e-2}


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Args:
        path: The file, or for Core ML the folder that is the package.
        part: What it computes.
        size: In bytes.
        summary: What was checked of it, in one line.
    """

    path: Path
    part: Part
    size: int
    summary: str

    def lines(self) -> list[str]:
        """Return what the tool prints."""
        part = self.part
        height, width = part.shape
        outputs = zip(part.output_names, part.outputs(part.example()), strict=True)
        shapes = ', '.join(f'{name} {"x".join(map(str, out.shape))}' for name, out in outputs)
        named = '' if part.name != 'classifier' else ', with class names' if part.classes else ', without class names'
        return [
            f'{part.name} of {part.config}, {part.weights} weights{named}',
            f'takes one {part.colors} image of {height}x{width} (height x width), values 0 to 255; gives {shapes}',
            self.summary,
            f'Written: {self.path} ({self.size / 1e6:.1f} MB)',
        ]


def export_part(
    config: str,
    checkpoint: str | None,
    target: str,
    out: str | None = None,
    part: str | None = None,
    shape: tuple[int, int] | None = None,
) -> Exported:
    """Write a part of a model for phones, after its file was compared with PyTorch.

    Args:
        config: A config of mmdet or of mmpretrain.
        checkpoint: The weights; None for random ones, which suffice to measure latency.
        target: ``'coreml'`` or ``'executorch'``.
        out: The file; None for the config's and the part's name, in the working folder.
        part: ``'backbone'``, ``'backbone+neck'`` or ``'classifier'``; None for the classifier of a classifier and the
            backbone of a detector.
        shape: Height and width; None for the crop of a classifier's test pipeline, and 512x512 for a detector.

    Raises:
        UsageError: If it cannot be written, or computes something else than PyTorch.
    """
    if target not in SUFFIXES:
        raise UsageError(f'no target {target!r} for a phone: choose from {", ".join(SUFFIXES)}')
    suffix = SUFFIXES[target]
    if out is not None and Path(out).suffix != suffix:
        raise UsageError(f'--out of --to {target} takes a name that ends in {suffix}, but got {out}')
    require, write = {
        'coreml': (require_coremltools, write_package),
        'executorch': (require_executorch, write_program),
    }[target]
    require()
    built = build_part(config, checkpoint, part, shape)
    path = Path(out) if out else Path(f'{built.config}_{built.name.replace("+", "_")}{suffix}')
    path.parent.mkdir(parents=True, exist_ok=True)
    summary = write(built, path)
    files = [path] if path.is_file() else [file for file in path.rglob('*') if file.is_file()]
    return Exported(path, built, sum(file.stat().st_size for file in files), summary)


def write_program(part: Part, path: Path) -> str:
    """Write a part as ExecuTorch's ``.pte`` file, if the program computes the same; return a line on that."""
    program = lower(part.module, part.example())
    found = ExecuTorch(program.content, threads=1).test_step(part.example().numpy())
    worst = check_agreement(part.outputs(part.example()), found, PROGRAM_TOLERANCE, 'the program')
    with saving(path) as part_file:
        part_file.write_bytes(program.content)
    return f'{program.summary()}; run here, the outputs differ from PyTorch by {worst:.1e} of their largest magnitude'


def write_package(part: Part, path: Path) -> str:
    """Write a part as Core ML's ``.mlpackage``, if its program computes the same; return a line on that.

    The package is a folder; one that is there is replaced.
    """
    model = convert(part.module, part.example(), part.name, part.colors, part.output_names, part.classes)
    _describe(model, part)
    with saved_package(model, path) as package:
        return _check_package(package, part)


def _describe(model: Any, part: Part) -> None:
    height, width = part.shape
    model.short_description = f'{part.name} of {part.config}, for images of {width} x {height} pixels'
    model.version = __version__
    model.license = 'MIT (the code; weights are under the terms of their source)'
    model.input_description[INPUT] = f'{part.colors} image of {width} x {height} pixels; normalisation is inside'
    model.user_defined_metadata.update(
        {
            'shvit_det.part': part.name,
            'shvit_det.config': part.config,
            'shvit_det.weights': part.weights,
            'shvit_det.input': f'1 x 3 x {height} x {width}, {part.colors}, 0 to 255',
            'shvit_det.mean': ', '.join(map(str, part.mean)),
            'shvit_det.std': ', '.join(map(str, part.std)),
        }
    )
    for name in part.output_names:
        if part.classes is None and name.startswith('stride_'):
            stride = name.removeprefix('stride_')
            model.output_description[name] = f'features of one position for every {stride} x {stride} pixels'


def _check_package(package: Package, part: Part) -> str:
    """Compare the content and the outputs of a package with its part; return a line on that.

    Outputs that differ by more than rounding explains, most often since float16 overflowed, end in ``UsageError``.
    """
    assert package.weight_types() == {'float16'}, package.weight_types()
    expected, differences = part.outputs(part.example()), []
    for dtype, tolerance in PACKAGE_TOLERANCES.items():
        found = list(package.run(part.example(), dtype).values())
        if part.classes is not None:
            found = found[1:]  # the first is the name of the best class
        title = f'with {str(dtype).removeprefix("torch.")} arithmetic the package'
        differences.append(check_agreement(expected, found, tolerance, title))
    stored, rounded = differences
    kinds = Counter(operation.op_type for operation in package.operations)
    return (
        f'{kinds.total()} operations of {len(kinds)} kinds, weights in float16; run by PyTorch operation by operation, '
        f'the outputs differ from the part in float32 by {stored:.1e} of their largest magnitude, and by {rounded:.1e} '
        f'with every result rounded to float16'
    )
