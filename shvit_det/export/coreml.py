"""Networks as Core ML packages, made on any system; only Apple's run them."""

import logging
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..common.errors import UsageError
from ..runtimes.quiet import quiet
from ..version import __version__
from .mil import Package
from .parts import Part, relative_difference

INPUT = 'image'
# What rounding may change, of the largest magnitude of an output; random weights round worst.
TOLERANCES = {torch.float32: 2e-2, torch.float16: 5e-2}


@dataclass(frozen=True)
class Check:
    """What was seen of a package that lies on disk.

    Args:
        operations: How often each operation occurs.
        stored: The largest difference from PyTorch with the weights of the package and arithmetic in float32.
        rounded: The same with the result of every operation rounded to float16.
    """

    operations: dict[str, int]
    stored: float
    rounded: float

    def summary(self) -> str:
        """Return one line."""
        return (
            f'{sum(self.operations.values())} operations of {len(self.operations)} kinds, weights in float16; '
            f'run by PyTorch operation by operation, the outputs differ from the part in float32 by {self.stored:.1e} '
            f'of their largest magnitude, and by {self.rounded:.1e} with every result rounded to float16'
        )


def require_coremltools() -> Any:
    """Import coremltools and return it.

    Raises:
        UsageError: If it is not installed.
    """
    logging.getLogger('coremltools').setLevel(logging.ERROR)  # it warns of what only Apple's systems have
    try:
        with quiet():
            module = import_module('coremltools')
    except ModuleNotFoundError as error:
        if error.name != 'coremltools':
            raise
        raise UsageError("coremltools is not installed: pip install 'shvit_det[coreml]'") from error
    return module


def write_package(part: Part, path: Path) -> Check:
    """Write a part as an ``.mlpackage`` in float16 for iOS 16 and later, read it again and compare it with PyTorch.

    Its input is an image, which Core ML hands over as pixels; outputs are arrays of float16, or for a classifier with
    names the best class and the probabilities by name.

    Args:
        part: What to write.
        path: The package, a folder that ends in ``.mlpackage``; one that is there is replaced.

    Raises:
        UsageError: If coremltools cannot express it, or the package computes something else.
    """
    tools = require_coremltools()
    names = part.classes
    how: dict[str, Any] = {}
    if names is not None:
        how['classifier_config'] = tools.ClassifierConfig(list(names))
    try:
        with quiet():
            traced = torch.jit.trace(part.module, part.example(), check_trace=False)
            model = tools.convert(
                traced,
                convert_to='mlprogram',
                inputs=[
                    tools.ImageType(
                        name=INPUT, shape=(1, 3, *part.shape), color_layout=getattr(tools.colorlayout, part.colors)
                    )
                ],
                outputs=[tools.TensorType(name=name) for name in part.output_names],
                compute_precision=tools.precision.FLOAT16,
                minimum_deployment_target=tools.target.iOS16,
                skip_model_load=True,
                **how,
            )
            _describe(model, part)
        with tempfile.TemporaryDirectory(prefix=f'.{path.name}-', dir=path.parent) as folder:
            made = Path(folder, 'new', path.name)
            made.parent.mkdir()
            with quiet():
                model.save(str(made))
                package = Package(made)
            check = _checked(package, part)
            replace_folder(path, made, aside=Path(folder, path.name))
    except OSError as error:
        raise UsageError(f'cannot write {path}: {error.strerror or error}') from error
    except (NotImplementedError, ValueError, RuntimeError) as error:
        if isinstance(error, UsageError):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f'the {part.name} cannot be converted to Core ML: {lines[0]}') from error
    return check


def replace_folder(path: Path, new: Path, aside: Path) -> None:
    """Give a folder its name; one that has it is put aside, since folders are not replaced in one step."""
    try:
        if path.exists():
            path.rename(aside)
        new.rename(path)
    except BaseException:
        if aside.exists():
            aside.rename(path)
        raise


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


def _checked(package: Package, part: Part) -> Check:
    """Compare what a package holds and computes with the part that it was made of.

    Raises:
        UsageError: If the outputs differ by more than rounding explains; most often float16 overflowed.
    """
    assert package.weight_types() == {'float16'}, package.weight_types()
    differences = {}
    expected = part.outputs(part.example())
    for dtype, tolerance in TOLERANCES.items():
        found = list(package.run(part.example(), dtype).values())
        if part.classes is not None:
            found = found[1:]  # the first is the best class's name
        worst = max(
            (relative_difference(out, wanted) for out, wanted in zip(found, expected, strict=True)),
            key=lambda value: (value != value, value),  # NaN is the worst
        )
        if not worst <= tolerance:
            raise UsageError(
                f'with {str(dtype).removeprefix("torch.")} arithmetic the package computes something else than '
                f'PyTorch: its outputs differ by {worst:.2g} of their largest magnitude, and {tolerance:g} is allowed'
            )
        differences[dtype] = worst
    kinds = Counter(operation.op_type for operation in package.operations)
    return Check(dict(kinds.most_common()), differences[torch.float32], differences[torch.float16])
