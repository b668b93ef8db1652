"""How everything in one benchmark is run."""

from dataclasses import dataclass
from typing import Any

import torch

from ..common.errors import UsageError

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
COMPILE_MODES = ('default', 'reduce-overhead', 'max-autotune')
DEFAULT_SECONDS = 20.0


@dataclass(frozen=True)
class Settings:
    """What all subjects of a benchmark have in common, or one of them with the changes that its prefixes make.

    Args:
        shape: Height and width of the images; None takes those of the first config's test pipeline.
        batch: Images per run.
        device: Where it runs.
        dtype: The type of the arithmetic: detectors run under autocast, backbones alone are converted.
        channels_last: Whether weights and images are laid out as NHWC.
        compile: A mode of ``torch.compile``, or None.
        threads: Threads of the CPU's kernels.
        detections: Detections per image; None leaves them to the weights, and fixes them at 100 for random ones.
        train: Whether a training step is timed instead of a prediction.
        fold: Whether batch norms are folded into the layers before them.
        deploy: Whether what has a SHViT is timed in its deployed form.
        convert: Whether a deployed detector has weights of this dtype, and does not run under autocast.
        runtime: What runs a backbone in place of PyTorch, or None.
        plain: Whether what has a SHViT computes norms and the neck's finer levels as they are written.
        only: The one part to be measured, or None.
        images: A folder of photographs, or None for synthetic images.
        protocol: ``'paper'`` or None.
        runs: Rounds, or None to fill ``seconds``.
        seconds: Measuring time per subject.
        flush: Whether a GPU's L2 cache is overwritten before each run.
    """

    device: torch.device
    threads: int
    shape: tuple[int, int] | None = None
    batch: int = 1
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    compile: str | None = None
    detections: int | None = None
    train: bool = False
    fold: bool = False
    deploy: bool = False
    convert: bool = False
    runtime: str | None = None
    plain: bool = False
    only: str | None = None
    images: str | None = None
    protocol: str | None = None
    runs: int | None = None
    seconds: float = DEFAULT_SECONDS
    flush: bool = False

    def __post_init__(self) -> None:
        for name in ('threads', 'batch', 'detections', 'runs'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f'--{name} must be at least 1, but got {value}')
        if self.seconds <= 0:
            raise UsageError(f'--seconds must be above 0, but got {self.seconds:g}')
        if self.shape is not None and min(self.shape) < 32:
            raise UsageError(f'--shape must be at least 32 32, but got {self.shape[0]} {self.shape[1]}')
        if self.device.type == 'cuda' and not torch.cuda.is_available():
            raise UsageError(f'--device {self.device} was asked for, but torch sees no CUDA here: use --device cpu')
        if self.device.type == 'cuda' and (self.device.index or 0) >= torch.cuda.device_count():
            raise UsageError(f'--device {self.device} was asked for, but there are {torch.cuda.device_count()} devices')
        if self.flush and self.device.type != 'cuda':
            raise UsageError('--flush-l2 is for a GPU, and this runs on the CPU')
        if self.images is not None and self.train:
            raise UsageError('--train draws its own images with objects: leave out --images')
        if self.images is not None and self.shape is not None:
            raise UsageError("--images go through the config's own pipeline, which sets their size: leave out --shape")
        if self.train and self.only is not None:
            raise UsageError('--train times whole steps by part: leave out --only')
        if self.train and (self.fold or self.deploy):
            raise UsageError('--train excludes --fold-bn and --deploy: a folded model is not trained')

    def as_record(self) -> dict[str, Any]:
        """Return the settings as they stand in a record."""
        return dict(
            mode='train' if self.train else 'predict',
            shape=None if self.shape is None else list(self.shape),
            batch=self.batch,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix('torch.'),
            channels_last=self.channels_last,
            compile=self.compile,
            threads=self.threads,
            detections=self.detections,
            fold=self.fold,
            deploy=self.deploy,
            only=None if self.only is None else [self.only],
            protocol=self.protocol,
            flush_l2=self.flush,
        )


def device_named(name: str) -> torch.device:
    """Return the device that ``--device`` names.

    Raises:
        UsageError: If torch knows no such device, or nothing here runs on it.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f'unknown device {name!r}: use cpu, cuda or cuda:N') from error
    if device.type not in ('cpu', 'cuda'):
        raise UsageError(f'{name} cannot be timed: use cpu, cuda or cuda:N')
    return device


def paper_conditions(device: torch.device) -> dict[str, Any]:
    """Return the settings of the paper's measurements of detection backbones (Table 5) on a kind of device."""
    size = dict(batch=32) if device.type == 'cuda' else dict(batch=16, threads=1)
    return dict(shape=(512, 512), fold=True, only='backbone', **size)
