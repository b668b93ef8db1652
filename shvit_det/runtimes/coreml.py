"""Networks as Core ML packages: converted on any system, and run operation by operation in PyTorch to check them.

Core ML itself runs on Apple's systems only. :meth:`Package.run` shows that a package as it lies on the disk (its
operations, their order and arguments, its weights) computes what it should; not how Core ML's own kernels round, and
not their speed. Operations mean what coremltools' reference of MIL operations says.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..common.atomic_files import replacing_folder
from ..common.errors import UsageError, first_line
from .packages import quiet, require

INPUT = 'image'
Values = dict[str, Any]


def require_coremltools() -> Any:
    """Import coremltools and return it."""
    logging.getLogger('coremltools').setLevel(logging.ERROR)  # it warns of everything that only Apple's systems have
    with quiet():
        return require('coremltools', 'Core ML', 'coreml')


def convert(
    module: nn.Module,
    image: Tensor,
    name: str,
    colors: str,
    output_names: Sequence[str],
    classes: Sequence[str] | None = None,
) -> Any:
    """Return a module as coremltools' ``MLModel``, in float16 for iOS 16 and later.

    Its input is an image, which Core ML passes as pixels. Its outputs are arrays of float16, or of a classifier with
    names of classes the best class and the probabilities by name.

    Args:
        module: In eval mode; (1, 3, H, W) with values 0 to 255 -> a tuple of tensors.
        image: An example; the model takes this size only.
        name: What errors call the module.
        colors: ``'RGB'`` or ``'BGR'``, the order of the channels.
        output_names: Of the model.
        classes: Of a classifier.
    """
    tools = require_coremltools()
    layout = getattr(tools.colorlayout, colors)
    options = {} if classes is None else dict(classifier_config=tools.ClassifierConfig(list(classes)))
    try:
        with quiet():
            return tools.convert(
                torch.jit.trace(module, image, check_trace=False),
                convert_to='mlprogram',
                inputs=[tools.ImageType(name=INPUT, shape=tuple(image.shape), color_layout=layout)],
                outputs=[tools.TensorType(name=name) for name in output_names],
                compute_precision=tools.precision.FLOAT16,
                minimum_deployment_target=tools.target.iOS16,
                skip_model_load=True,
                **options,
            )
    except (NotImplementedError, ValueError, RuntimeError) as error:
        raise UsageError(f'the {name} cannot be converted to Core ML: {first_line(error)}') from error


@contextmanager
def saved_package(model: Any, path: Path) -> Iterator['Package']:
    """Write a model, in place of a package that is there, and give it as it is read again; the block may refuse it."""
    try:
        with replacing_folder(path) as folder:
            with quiet():
                model.save(str(folder))
                package = Package(folder)
            yield package
    except OSError as error:
        raise UsageError(f'cannot write {path}: {error.strerror or error}') from error


class Package:
    """An ``.mlpackage``, a folder, that holds an ML program."""

    def __init__(self, path: Path) -> None:
        import coremltools
        from coremltools.converters.mil.frontend.milproto.load import load

        model = coremltools.models.MLModel(str(path), skip_model_load=True)
        self.description = model.get_spec()
        program = load(self.description, self.description.specificationVersion, model.weights_dir)
        self._function = program.functions['main']
        self.operations = [operation for operation in self._function.operations if operation.op_type != 'const']

    def weight_types(self) -> set[str]:
        """Return the types of the constants that are arrays of floating-point numbers."""
        values = (operation.outputs[0].val for operation in self._function.operations if operation.op_type == 'const')
        arrays = [np.asarray(value) for value in values]
        return {array.dtype.name for array in arrays if array.dtype.kind == 'f' and array.size > 1}

    def run(self, image: Tensor, dtype: torch.dtype) -> Values:
        """Return the outputs by name.

        Args:
            image: (1, 3, H, W), the values of the pixels.
            dtype: The type to which the result of every operation is rounded, float32 or float16. Within an operation
                everything is float32.
        """
        (input_name,) = self._function.inputs
        known: Values = {input_name: image}

        def value(variable: Any) -> Any:
            if isinstance(variable, list | tuple):
                return [value(item) for item in variable]
            if variable.name in known:
                return known[variable.name]
            constant = variable.val
            return _rounded(torch.from_numpy(constant)) if isinstance(constant, np.ndarray) else constant

        for operation in self.operations:
            compute = OPERATIONS.get(operation.op_type)
            if compute is None:
                raise UsageError(f'the package has the operation {operation.op_type}, which cannot be checked here')
            results = compute(**{name: value(given) for name, given in operation.inputs.items()})
            results = results if isinstance(results, tuple) else (results,)
            for variable, result in zip(operation.outputs, results, strict=True):
                known[variable.name] = _rounded(result, dtype)
        return {variable.name: known[variable.name] for variable in self._function.outputs}


def _rounded(result: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Return floating-point numbers rounded to a type, in float32, and all else as it is."""
    return result.to(dtype).float() if isinstance(result, Tensor) and result.is_floating_point() else result


def _numbers(values: Any) -> list[int]:
    return [int(number) for number in values]


def _padding(how: Values) -> list[int]:
    """Return the padding in torch's order: left, right, top, bottom."""
    if how['pad_type'] not in ('valid', 'custom'):
        raise UsageError(f'the package has a padding {how["pad_type"]}, which cannot be checked here')
    top, bottom, left, right = _numbers(how['pad']) if how['pad_type'] == 'custom' else (0, 0, 0, 0)
    return [left, right, top, bottom]


def _conv(x: Tensor, weight: Tensor, bias: Any = None, **how: Any) -> Tensor:
    padded = functional.pad(x, _padding(how))
    strides, dilations = _numbers(how['strides']), _numbers(how['dilations'])
    return functional.conv2d(padded, weight, bias, strides, 0, dilations, int(how['groups']))


def _conv_transpose(x: Tensor, weight: Tensor, bias: Any = None, **how: Any) -> Tensor:
    strides, dilations = _numbers(how['strides']), _numbers(how['dilations'])
    full = functional.conv_transpose2d(x, weight, bias, strides, 0, 0, int(how['groups']), dilations)
    cropped = functional.pad(full, [-side for side in _padding(how)])
    shape = how.get('output_shape')
    if shape is not None and list(cropped.shape) != _numbers(shape):
        raise UsageError(f'the package states an output of {_numbers(shape)} for one of {list(cropped.shape)}')
    return cropped


def _slice(x: Tensor, begin: Any, end: Any, **how: Any) -> Tensor:
    def bounds(numbers: Any, mask: str) -> list[int | None]:
        masked = how.get(mask, [False] * x.dim())
        return [None if is_masked else int(n) for n, is_masked in zip(numbers, masked, strict=True)]

    steps = _numbers(how.get('stride', [1] * x.dim()))
    return x[tuple(map(slice, bounds(begin, 'begin_mask'), bounds(end, 'end_mask'), steps))]


def _matmul(x: Tensor, y: Tensor, transpose_x: Any = False, transpose_y: Any = False) -> Tensor:
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def _classify(probabilities: Tensor, classes: Any) -> tuple[str, Tensor]:
    names = [str(name) for name in classes]
    return names[int(probabilities.argmax())], probabilities


OPERATIONS: dict[str, Callable[..., Any]] = {
    'add': lambda x, y: x + y,
    'cast': lambda x, dtype: x,  # all results are rounded to one type anyway
    'classify': _classify,
    'concat': lambda values, axis, interleave=False: torch.cat(values, int(axis)),
    'conv': _conv,
    'conv_transpose': _conv_transpose,
    'fill_like': lambda ref_tensor, value: torch.full_like(ref_tensor, float(value)),
    'linear': lambda x, weight, bias=None: functional.linear(x, weight, bias),
    'matmul': _matmul,
    'max_pool': lambda x, kernel_sizes, **how: functional.max_pool2d(
        functional.pad(x, _padding(how), value=-torch.inf), _numbers(kernel_sizes), _numbers(how['strides'])
    ),
    'mul': lambda x, y: x * y,
    'reduce_mean': lambda x, axes, keep_dims: x.mean(_numbers(axes), keepdim=bool(keep_dims)),
    'relu': lambda x: x.relu(),
    'reshape': lambda x, shape: x.reshape(_numbers(shape)),
    'rsqrt': lambda x, epsilon: torch.rsqrt(x + float(epsilon)),
    'sigmoid': lambda x: x.sigmoid(),
    'slice_by_index': _slice,
    'softmax': lambda x, axis: x.softmax(int(axis)),
    'squeeze': lambda x, axes: x.squeeze(_numbers(axes)),
    'sub': lambda x, y: x - y,
    'transpose': lambda x, perm: x.permute(_numbers(perm)),
    'upsample_nearest_neighbor': lambda x, scale_factor_height, scale_factor_width: functional.interpolate(
        x, scale_factor=(float(scale_factor_height), float(scale_factor_width)), mode='nearest'
    ),
}
