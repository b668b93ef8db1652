"""Compare exported files with PyTorch: python tools/compare_export.py CONFIG CHECKPOINT FILE.onnx FILE.xml"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from ..common.errors import UsageError
from ..common.measurement_records import save_record
from ..configuration.cfg_options import add_cfg_options
from ..export.comparison import compare, comparison_table


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Run a detector in PyTorch, plain and deployed, and exported from it on the test images of its '
        'config: compare detections, average precision and time.'
    )
    add = parser.add_argument
    add('config', help='config file')
    add('checkpoint', help='the checkpoint that the files were exported from, or random')
    add('files', nargs='+', metavar='FILE', help='what tools/export.py wrote')
    add('--limit', type=int, metavar='N', help='the first N images [all]')
    add('--threads', type=int, default=1, help='threads of PyTorch and of the other runtimes [1]')
    add('--data-root', metavar='DIR', help='another folder in the same layout')
    add('--json', metavar='FILE', help='write the record into this file')
    add_cfg_options(parser, 'as the files were exported with')
    options = vars(parser.parse_args())
    json = options.pop('json')
    if json is not None and not Path(json).parent.is_dir():
        raise UsageError(f'no such folder for --json: {Path(json).parent}')
    if options['limit'] is not None and options['limit'] < 1:
        raise UsageError(f'--limit has to be at least 1, but got {options["limit"]}')

    def save(record: dict[str, Any]) -> None:
        if json is not None:
            save_record(record, json)
        print(comparison_table(record))

    compare(
        options.pop('config'),
        **options,
        command=shlex.join(['python', 'tools/compare_export.py', *map(_without_folder, sys.argv[1:])]),
        progress=lambda line: print(line, file=sys.stderr, flush=True),
        save=save,
    )


def _without_folder(argument: str) -> str:
    """Return an argument as it is published: of an absolute path, which means nothing elsewhere, only the name."""
    return Path(argument).name if Path(argument).is_absolute() else argument
