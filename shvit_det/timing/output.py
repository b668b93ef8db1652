"""The files a benchmark leaves."""

from collections.abc import Iterator
from pathlib import Path

from ..common.atomic_files import saving
from ..common.errors import UsageError
from .benchmark_report import markdown_report
from .plots import save_plot
from .record import Record, write_record


def check_outputs(json: str | None, markdown: str | None, plot: str | None) -> None:
    """See before anything is measured that the results can be written.

    Raises:
        UsageError: If a folder does not exist, a file is a folder, or the picture is not to be a ``.png``.
    """
    for path in filter(None, (json, markdown, plot)):
        if not Path(path).parent.is_dir():
            raise UsageError(f'cannot write {path}: there is no folder {Path(path).parent}')
        if Path(path).is_dir():
            raise UsageError(f'cannot write {path}: it is a folder')
    if plot is not None and Path(plot).suffix.lower() != '.png':
        raise UsageError(f'--plot takes a file that ends in .png, but got {plot}')


def write_outputs(record: Record, json: str | None, markdown: str | None, plot: str | None) -> Iterator[str]:
    """Write what was asked for and yield each file's path."""
    if json is not None:
        write_record(record, json)
        yield json
    if markdown is not None:
        with saving(markdown) as part:
            part.write_text(markdown_report(record), encoding='utf-8')
        yield markdown
    if plot is not None:
        save_plot(record, plot)
        yield plot
