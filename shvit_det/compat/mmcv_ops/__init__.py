"""Symptom: ``No module named 'mmcv._ext'``, because mmcv was installed without its compiled ops.

mmcv is compiled where it is installed. Without torch there, under build isolation, or as ``mmcv-lite`` it has no
compiled ops, and ``mmdet.models`` cannot be imported. This package puts a module of that name in their place, with the
ops that mmdet's detectors use, on torchvision's compiled ops and plain torch, on any device. Of 819 configs of mmdet
3.3, 4 need an op that is missing: CARAFE or a deformable RoI pooling. See :mod:`.missing_ops`.

Results and gradients are those of mmcv's own kernels, also on pixels, at borders and for empty inputs. These exceptions
are deliberate:

- overlaps of boxes without area are 0, where mmcv has 0 / 0 (:mod:`.nms`);
- losses of very wrong logits do not stop at the logarithm of the smallest float, and a target that is no class has
  weight 1, where mmcv reads memory beyond the end of the weights (:mod:`.focal_loss`).

Where a point of multi-scale deformable attention lies on the centre of a pixel, the derivative jumps, and rounding
decides which side's it is: differently here, in mmcv's function for CPUs and in its kernel for GPUs.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torchvision

from . import deformable_attention, deformable_convolution, focal_loss, masked_convolution, nms, roi_align
from .missing_ops import INSTALL_MMCV, refuse_missing_ops, way_out

__all__ = ['install', 'is_stand_in']

NAME = 'mmcv._ext'
OPS: dict[str, Callable[..., Any]] = {
    name: getattr(module, name)
    for module in (deformable_attention, deformable_convolution, focal_loss, masked_convolution, nms, roi_align)
    for name in module.__all__
}
# what mmcv.utils.collect_env reports, in the words of mmcv's own build for CPUs
OPS['get_compiler_version'] = lambda: f'none (shvit_det on torchvision {torchvision.__version__})'
OPS['get_compiling_cuda_version'] = lambda: 'not available'


def missing_op(name: str) -> Callable[..., NoReturn]:
    """Return an op that only refuses: mmcv asks for all of its ops by name when it is imported."""
    if name.startswith('__'):
        raise AttributeError(f'module {NAME!r} has no attribute {name!r}')

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(way_out(name))

    return refuse


def is_stand_in() -> bool:
    """Tell whether ``mmcv._ext`` is ours: only the stand-in has the attribute ``__stand_in__``."""
    return hasattr(sys.modules.get(NAME), '__stand_in__')


def install() -> bool:
    """Make mmcv's Python files find their ops; return whether these are the stand-in's.

    Compiled ops that load are left alone. Those that do not, mostly because they were built for another torch, are
    replaced with a warning.

    Raises:
        ModuleNotFoundError: If mmcv itself is missing.
    """
    if is_stand_in():
        return True
    if importlib.util.find_spec(NAME) is not None:
        try:
            importlib.import_module(NAME)
        except ImportError as error:
            warnings.warn(
                f'The compiled ops of the installed mmcv do not load with torch '
                f'{torch.__version__} ({error}), so that torchvision is used instead: '
                f'build mmcv again for this torch ({INSTALL_MMCV}), or uninstall it and '
                f'`pip install "mmcv-lite>=2.0.0rc4,<2.2.0"`.',
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            return False
    module = types.ModuleType(NAME, "shvit_det's stand-in for mmcv's compiled ops, on torchvision.")
    vars(module).update(OPS, __stand_in__='shvit_det', __getattr__=missing_op)
    # pkgutil.find_loader takes a module without a loader for absent: this one has the loader of this file
    module.__spec__ = importlib.machinery.ModuleSpec(NAME, __spec__.loader, origin=__name__)
    sys.modules[NAME] = vars(sys.modules['mmcv'])['_ext'] = module
    refuse_missing_ops()
    return True
