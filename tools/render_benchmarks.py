"""Fill the tables of docs/benchmarks.md from the records in docs/results: python tools/render_benchmarks.py"""

import argparse
import sys

from shvit_det.engine import cli
from shvit_det.timing.page import page_is_current, write_page


def main() -> None:
    parser = argparse.ArgumentParser(description='Fill the tables of the page of benchmarks from its records.')
    parser.add_argument('page', nargs='?', default='docs/benchmarks.md', help='its records are in results/ beside it')
    parser.add_argument('--check', action='store_true', help='write nothing; exit with status 1 if the page differs')
    arguments = parser.parse_args()
    if not arguments.check:
        write_page(arguments.page)
    elif not page_is_current(arguments.page):
        print(f'{arguments.page} differs from its records: run python {sys.argv[0]} {arguments.page}', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    cli.run(main)
