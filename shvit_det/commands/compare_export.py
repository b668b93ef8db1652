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
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='the checkpoint that the files were exported from, or random')
    parser.add_argument('files', nargs='+', metavar='FILE', help='what tools/export.py wrote')
    parser.add_argument('--limit', type=int, metavar='N', help='the first N images [all]')
    parser.add_argument('--threads', type=int, default=1, help='threads of PyTorch and of the other runtimes [1]')
    parser.add_argument('--data-root', metavar='DIR', help='another folder in the same layout')
    parser.add_argument('--json', metavar='FILE', help='write the record into this file')
    add_cfg_options(parser, 'as the files were exported with')
    arguments = parser.parse_args()
    if arguments.json is not None and not Path(arguments.json).parent.is_dir():
        raise UsageError(f'no such folder for --json: {Path(arguments.json).parent}')
    if arguments.limit is not None and arguments.limit < 1:
        raise UsageError(f'--limit has to be at least 1, but got {arguments.limit}')

    def save(record: dict[str, Any]) -> None:
        if arguments.json is not None:
            save_record(record, arguments.json)
        print(comparison_table(record))

    compare(
        arguments.config,
        arguments.checkpoint,
        arguments.files,
        limit=arguments.limit,
        threads=arguments.threads,
        data_root=arguments.data_root,
        cfg_options=arguments.cfg_options,
        command=shlex.join(['python', 'tools/compare_export.py', *map(_without_folder, sys.argv[1:])]),
        progress=lambda line: print(line, file=sys.stderr, flush=True),
        save=save,
    )


def _without_folder(argument: str) -> str:
    """Return an argument as it is published: of an absolute path, which means nothing elsewhere, only the name."""
    return Path(argument).name if Path(argument).is_absolute() else argument
