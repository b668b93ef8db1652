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

What is called here may import only modules that do not import the library in question at their top: such a module could
be what imports the library, and would not be complete yet.
"""

import importlib
from types import ModuleType
from typing import Any

from .compat.import_hooks import when_imported


def ours(name: str) -> Any:
    """Return a module of this package, which is imported only now."""
    return importlib.import_module(f'{__package__}.{name}')


def prepare_mmengine(_: ModuleType) -> None:
    ours('registry')  # enters our names
    ours('compat.mmengine_packages').add_to_mmengine()
    ours('compat.mmengine_packages').silence_pkg_resources()
    ours('configuration.names_for_mmengine').add_to_configs()


def prepare_checkpoints(_: ModuleType) -> None:
    ours('compat.torch_load').let_mmengine_load_runs()
    ours('configuration.names_for_mmengine').add_to_checkpoint_loader()


def restore_find_loader(caller: ModuleType) -> None:
    ours('compat.find_loader').restore_find_loader(caller)


def install() -> None:
    """Prepare each library, now if it has been imported, else as soon as it is. Calling this twice does no harm."""
    when_imported('mmengine', prepare_mmengine)
    when_imported('mmengine.infer', lambda _: ours('configuration.names_for_mmengine').add_to_inferencers())
    when_imported('mmengine.runner.checkpoint', prepare_checkpoints)
    when_imported('mmengine.utils.dl_utils.misc', restore_find_loader)
    when_imported('mmcv.utils.ext_loader', restore_find_loader)
    when_imported('mmcv', lambda _: ours('compat.mmcv_ops').install())
    when_imported('mmcv.image.geometric', lambda module: ours('compat.thin_images').keep_one_pixel(module))
    when_imported('mmdet.models.detectors', lambda _: ours('models.detector_check').install())
    when_imported(
        'mmdet.evaluation.functional.recall', lambda module: ours('compat.ragged_arrays').allow_ragged_arrays(module)
    )
