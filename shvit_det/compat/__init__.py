"""What the releases below us need to run on today's torch; one small module per symptom.

Every function here is safe to call twice and does nothing where there is nothing to cure.
"""

from . import find_loader, mmcv_ops, packages, torch_load


def prepare() -> None:
    """Make the OpenMMLab stack usable: called once, when ``shvit_det`` is imported."""
    find_loader.restore_find_loader()
    mmcv_ops.install()
    torch_load.let_mmengine_load_runs()
    packages.add_to_mmengine()
    packages.silence_pkg_resources()
