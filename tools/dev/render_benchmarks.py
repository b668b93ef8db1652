"""Make pages and tables of docs from the records in docs/dev/results: python tools/dev/render_benchmarks.py

Each benchmark record NAME.json gets a page NAME.md beside it. In the pages of docs, a block between
``<!-- table: NAME OTHER -->`` and ``<!-- end -->`` gets a table of these records; a page's own records may lie in a
folder of its name, such as results/exporting. A test holds that everything agrees.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shvit_det import UsageError
from shvit_det.commands import cli
from shvit_det.common.atomic_files import write_text
from shvit_det.common.measurement_records import conditions, counted, origin
from shvit_det.export.comparison import FORMAT as COMPARISON
from shvit_det.export.comparison import comparison_block
from shvit_det.timing.published import published_for
from shvit_det.timing.record import Record, Subject, read_record
from shvit_det.timing.results import image_ms, markdown_report
from shvit_det.timing.text_tables import Table, as_markdown, significant

PAGES = ['docs/benchmarks.md', 'docs/exporting.md']
RESULTS = Path('dev', 'results')
START = re.compile(r'<!-- table: ([\w. -]+) -->')
END = '<!-- end -->'


def rendered_files(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield a page and the pages of the benchmark records below it, each with the text that it should have.

    Raises:
        UsageError: If the page cannot be read, or does not fit the records.
    """
    try:
        text = page.read_text(encoding='utf-8')
    except OSError as error:
        raise UsageError(f'cannot read the page {page}: {error.strerror}') from error
    results = page.parent / RESULTS
    own = results / page.stem
    yield page, render_page(text, own if own.is_dir() else results)
    for path in sorted(results.glob('*.json')):
        yield path.with_suffix('.md'), markdown_report(read_record(path), path.stem.replace('_', ' '))


def render_page(text: str, results: Path) -> str:
    """Return a page with its blocks filled from records.

    Raises:
        UsageError: If a block is not closed or names no record, or if a page's own record is in no block.
    """
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
            lines += ['', render_block(block.split(), results), '', line]
            used.update(block.split())
            block = None
        elif block is None:
            lines.append(line)
    if block:
        raise UsageError(f'the block {block} is not closed: put {END} on a line after it')
    unused = sorted(path.name for path in results.glob('*.json') if path.stem not in used)
    if unused and results.name != RESULTS.name:
        raise UsageError(f'no block shows {", ".join(unused)} of {results}: add <!-- table: NAME --> and {END}')
    return '\n'.join(lines) + '\n'


def render_block(names: Sequence[str], results: Path) -> str:
    """Return what a page says of some records: an export comparison as it is, or benchmarks in one table."""
    paths = {name: results / f'{name}.json' for name in names}
    for name, path in paths.items():
        if not path.is_file():
            raise UsageError(
                f'the block {name} has no record {path}: make it with tools/benchmark.py or remove the block'
            )
    first = paths[names[0]].read_text(encoding='utf-8')
    if f'"{COMPARISON}"' in first:
        return comparison_block(json.loads(first))
    return benchmarks_block({name: read_record(path) for name, path in paths.items()})


def benchmarks_block(records: Mapping[str, Record]) -> str:
    """Return a row for each subject of some benchmarks, and where each record was made, with a link to its page.

    Records of the same threads and batch share their columns. The ratios of a record are to its row with ratio 1.
    """
    subjects = {subject['name']: subject for record in records.values() for subject in record['subjects']}
    columns: dict[str, dict[str, str]] = {
        'model': {name: name for name in subjects},
        'box AP, published': {name: _published_ap(subject) for name, subject in subjects.items()},
        'params M': {name: significant(subject['parameters'] / 1e6) for name, subject in subjects.items()},
        'GMACs': {name: _gmacs(subject) for name, subject in subjects.items()},
    }
    for record in records.values():
        settings = record['settings']
        label = counted(settings['threads'], 'thread')
        label += f', batch {settings["batch"]}' if settings['batch'] > 1 else ''
        times, ratios = (columns.setdefault(f'{what}, {label}', {}) for what in ('ms/image', 'ratio'))
        times.update({subject['name']: significant(image_ms(subject)) for subject in record['subjects']})
        ratios.update({record['subjects'][0]['name']: '1', **_ratios(record)})
    rows = [{header: column.get(name, '') for header, column in columns.items()} for name in subjects]
    lines = [
        f'- [{name}]({(RESULTS / name).as_posix()}.md): {conditions(r)}; {origin(r)}' for name, r in records.items()
    ]
    return as_markdown([Table(rows, text=['model']), *lines])


def _ratios(record: Record) -> dict[str, str]:
    """Return the ratios of whole detectors, or of backbones if there are no others."""
    figures = ('backbone alone', 'whole')
    return {r['subject']: significant(r['ratio']) for f in figures for r in record['ratios'] if r['figure'] == f}


def _gmacs(subject: Subject) -> str:
    return significant(sum(cost['macs'] for cost in subject['cost']) / subject['input_shape'][0] / 1e9)


def _published_ap(subject: Subject) -> str:
    row: Any = published_for(subject['source']) if subject['kind'] == 'backbone' else None
    return str(row.box_ap) if row and row.box_ap is not None else ''


def main() -> None:
    parser = argparse.ArgumentParser(description='Make pages and tables of measurements from their records.')
    parser.add_argument(
        'pages', nargs='*', default=PAGES, help='their records are in dev/results beside them [%(default)s]'
    )
    parser.add_argument('--check', action='store_true', help='write nothing; exit with status 1 if a page differs')
    arguments = parser.parse_args()
    for page in arguments.pages:
        for path, text in rendered_files(Path(page)):
            if not arguments.check:
                write_text(path, text)
            elif not path.exists() or path.read_text(encoding='utf-8') != text:
                print(f'{path} differs from its records: run python {sys.argv[0]} {page}', file=sys.stderr)
                sys.exit(1)


if __name__ == '__main__':
    cli.run(main)
