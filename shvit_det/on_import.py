"""What ``import shvit_det`` changes in other libraries, and why. Each is changed when it is imported, and not before.

``custom_imports = dict(imports=['shvit_det'])`` is all that users write, so that our names have to work after it, and
detectors have to be checked. A program that never imports a library pays nothing for what is done to it here.

- mmengine: its registries know the names of our classes, its configs and inferencers those of our configs, and its
  checkpoint loader the checkpoints that it writes itself (:mod:`.compat.torch_load`).
- mmcv: where it has no compiled ops, or ops that do not load, ours on torchvision take their place. Images of which a
  pipeline's resizing would leave nothing keep one pixel.
- mmdet: a detector whose backbone is a SHViT is checked when it is built (:mod:`.models.detector_check`), and recalls
  of proposals are computed with today's numpy too.
- both mmengine and mmcv: they call ``pkgutil.find_loader``, which Python 3.14 lacks.

The functions here may import only modules that do not import the library in question at their top: such a module could
be what imports the library, and would not be complete yet.
"""

import importlib
from types import ModuleType

from .compat import small_repairs
from .compat.import_hooks import when_imported


def install() -> None:
    """Prepare each library, now if it has been imported, else as soon as it is. Calling this twice does no harm."""
    when_imported('mmengine', prepare_mmengine)
    when_imported('mmengine.infer', prepare_inferencers)
    when_imported('mmengine.runner.checkpoint', prepare_checkpoints)
    when_imported('mmengine.utils.dl_utils.misc', small_repairs.restore_find_loader)
    when_imported('mmcv.utils.ext_loader', small_repairs.restore_find_loader)
    when_imported('mmcv', prepare_mmcv)
    when_imported('mmcv.image.geometric', small_repairs.keep_one_pixel)
    when_imported('mmdet.models.detectors', check_detectors)
    when_imported('mmdet.evaluation.functional.recall', small_repairs.allow_ragged_arrays)


def prepare_mmengine(_: ModuleType) -> None:
    from .configuration import names_for_mmengine

    importlib.import_module(f'{__package__}.registry')  # enters our names
    small_repairs.add_to_mmengine()
    small_repairs.silence_pkg_resources()
    names_for_mmengine.add_to_configs()


def prepare_inferencers(_: ModuleType) -> None:
    from .configuration import names_for_mmengine

    names_for_mmengine.add_to_inferencers()


def prepare_checkpoints(_: ModuleType) -> None:
    from .compat import torch_load
    from .configuration import names_for_mmengine

    torch_load.let_mmengine_load_runs()
    names_for_mmengine.add_to_checkpoint_loader()


def prepare_mmcv(_: ModuleType) -> None:
    from .compat import mmcv_ops

    mmcv_ops.install()


def check_detectors(_: ModuleType) -> None:
    from .models import detector_check

    detector_check.install()
