"""Fill the tables of pages in docs from the records in docs/results: python tools/dev/render_benchmarks.py"""

import argparse
import sys

from shvit_det.commands import cli
from shvit_det.timing.page import page_is_current, write_page

PAGES = ['docs/benchmarks.md', 'docs/exporting.md']


def main() -> None:
    parser = argparse.ArgumentParser(description='Fill the tables of pages of measurements from their records.')
    parser.add_argument(
        'pages',
        nargs='*',
        default=PAGES,
        help='their records are in results/ or results/PAGE/ beside them [%(default)s]',
    )
    parser.add_argument('--check', action='store_true', help='write nothing; exit with status 1 if a page differs')
    arguments = parser.parse_args()
    for page in arguments.pages:
        if not arguments.check:
            write_page(page)
        elif not page_is_current(page):
            print(f'{page} differs from its records: run python {sys.argv[0]} {page}', file=sys.stderr)
            sys.exit(1)


if __name__ == '__main__':
    cli.run(main)
