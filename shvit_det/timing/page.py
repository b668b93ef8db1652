"""The pages of measurements among the documents: their tables come from records, and a test holds that they agree."""

import json
import re
from pathlib import Path

from ..common.atomic_files import write_text
from ..common.errors import UsageError
from ..export.comparison import FORMAT as COMPARISON
from ..export.comparison import comparison_block
from .benchmark_report import command_block, markdown_tables
from .descriptions import conditions, origin
from .record import read_record

START = re.compile(r'<!-- table: ([\w.-]+) -->')
END = '<!-- end -->'


def render_page(text: str, results_dir: str | Path) -> str:
    """Return a page with each block between ``<!-- table: NAME -->`` and ``<!-- end -->`` made from ``NAME.json``.

    Raises:
        UsageError: If a block is not closed, names no record, or a record is named by no block.
    """
    results_dir = Path(results_dir)
    lines: list[str] = []
    used: set[str] = set()
    block = None
    for number, line in enumerate(text.splitlines(), 1):
        marker = line.strip()
        if marker.startswith('<!-- table'):
            start = START.fullmatch(marker)
            if start is None:
                raise UsageError(f'line {number} starts no block: {marker!r} should be <!-- table: NAME -->')
            if block:
                raise UsageError(f'the block {block} is not closed before line {number}: put {END} on a line after it')
            block = start[1]
            lines.append(line)
        elif marker == END:
            if block is None:
                raise UsageError(f'{END} in line {number} closes no block: start one with <!-- table: NAME -->')
            lines += ['', render_result(results_dir, block), '', line]
            used.add(block)
            block = None
        elif block is None:
            lines.append(line)
    if block:
        raise UsageError(f'the block {block} is not closed: put {END} on a line after it')
    unused = sorted(path.name for path in results_dir.glob('*.json') if path.stem not in used)
    if unused:
        raise UsageError(f'no block shows {", ".join(unused)} of {results_dir}: add <!-- table: NAME --> and {END}')
    return '\n'.join(lines) + '\n'


def render_result(results_dir: Path, name: str) -> str:
    """Return what a page says of one record: its command, where it was made, its tables."""
    path = results_dir / f'{name}.json'
    if not path.is_file():
        raise UsageError(f'the block {name} has no record {path}: make it with tools/benchmark.py or remove the block')
    if f'"{COMPARISON}"' in path.read_text(encoding='utf-8'):
        return comparison_block(json.loads(path.read_text(encoding='utf-8')))
    record = read_record(path)
    return f'{command_block(record)}\n\n{conditions(record)}; {origin(record)}.\n\n{markdown_tables(record)}'


def write_page(path: str | Path) -> None:
    """Fill the blocks of a page from the folder ``results`` beside it, or the one of the page's name in there.

    Raises:
        UsageError: If the page cannot be read, or does not fit the records.
    """
    write_text(Path(path), _rendered(path)[1])


def page_is_current(path: str | Path) -> bool:
    """Return whether a page says what its records do."""
    text, rendered = _rendered(path)
    return text == rendered


def _rendered(path: str | Path) -> tuple[str, str]:
    try:
        text = Path(path).read_text(encoding='utf-8')
    except OSError as error:
        raise UsageError(f'cannot read the page {path}: {error.strerror}') from error
    results = Path(path).parent / 'results'
    own = results / Path(path).stem
    return text, render_page(text, own if own.is_dir() else results)
