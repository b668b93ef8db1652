"""Leave out what mmengine does for readers of a config and for memory; it takes a tenth of the time of the tests."""

from types import SimpleNamespace

from mmengine.config import config
from mmengine.dataset import base_dataset

from shvit_det.compat import formatted_configs


def unformatted(text: str, **options: object) -> tuple[str, bool]:
    return text, True


def leave_out() -> None:
    """Let configs be written without line breaks, and data sets be built without a search for garbage."""
    config.FormatCode = formatted_configs.format_code = unformatted
    base_dataset.gc = SimpleNamespace(collect=lambda: 0)
