"""The export behind ``tools/export.py --to coreml|executorch``: a part of a model as a file for phones."""

from dataclasses import dataclass
from pathlib import Path

from ..common.atomic_files import saving
from ..common.errors import UsageError
from ..runtimes.executorch import Runner, lower, require_executorch
from .coreml import require_coremltools, write_package
from .parts import Part, build_part, relative_difference

SUFFIXES = {'coreml': '.mlpackage', 'executorch': '.pte'}
TOLERANCE = 1e-4  # of a program in float32, of the largest magnitude of each output


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: The file, or the folder that is a package.
        part: What it computes.
        size: In bytes.
        summary: What was checked of it, in one line.
    """

    path: Path
    part: Part
    size: int
    summary: str

    def lines(self) -> list[str]:
        """Return what a user wants to know of it."""
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


def export_phone(
    config: str,
    checkpoint: str | None,
    target: str,
    out: str | None = None,
    part: str | None = None,
    shape: tuple[int, int] | None = None,
) -> Exported:
    """Write a part of a model for phones and compare what was written with PyTorch.

    Args:
        config: A config of mmdet or of mmpretrain.
        checkpoint: Weights; None for random ones, which suffice to measure latency.
        target: ``'coreml'`` or ``'executorch'``.
        out: The file; None for the config's and the part's name, in the working folder.
        part: ``'backbone'``, ``'backbone+neck'`` or ``'classifier'``; None as ``parts.build_part`` says.
        shape: Height and width; None as ``parts.build_part`` says.

    Raises:
        UsageError: If it cannot be written, or computes something else than PyTorch.
    """
    if target not in SUFFIXES:
        raise UsageError(f'no target {target!r} for a phone: choose from {", ".join(SUFFIXES)}')
    suffix = SUFFIXES[target]
    if out is not None and Path(out).suffix != suffix:
        raise UsageError(f'--out of --to {target} takes a name that ends in {suffix}, but got {out}')
    if target == 'coreml':
        require_coremltools()
    else:
        require_executorch()
    built = build_part(config, checkpoint, part, shape)
    path = Path(out) if out else Path(f'{built.config}_{built.name.replace("+", "_")}{suffix}')
    path.parent.mkdir(parents=True, exist_ok=True)
    summary = write_package(built, path).summary() if target == 'coreml' else write_program(built, path)
    files = [path] if path.is_file() else [file for file in path.rglob('*') if file.is_file()]
    return Exported(path, built, sum(file.stat().st_size for file in files), summary)


def write_program(part: Part, path: Path) -> str:
    """Write a part as a ``.pte`` file, run it and compare it with PyTorch; return what was seen.

    Raises:
        UsageError: If ExecuTorch cannot express it, or the program computes something else.
    """
    program = lower(part.module, part.example())
    found = Runner(program.content, threads=1)(part.example())
    expected = part.outputs(part.example())
    worst = max(relative_difference(out, wanted) for out, wanted in zip(found, expected, strict=True))
    if not worst <= TOLERANCE:
        raise UsageError(
            f'the program computes something else than PyTorch: its outputs differ by {worst:.2g} of their largest '
            f'magnitude, and {TOLERANCE:g} is allowed'
        )
    with saving(path) as part_file:
        part_file.write_bytes(program.content)
    return f'{program.summary()}; run here, the outputs differ from PyTorch by {worst:.1e} of their largest magnitude'
