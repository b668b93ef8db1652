"""Print the report: exit status 0 if nothing is broken, else 1."""

import argparse
import sys
from pathlib import Path

from . import doctor_report
from .imports import probe


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m shvit_det.doctor' if Path(sys.argv[0]).name == '__main__.py' else None,
        description='Check the stack below shvit_det and say what mends it. Exit status 1 if something is broken.',
    )
    parser.add_argument('--json', action='store_true', help='print the same as JSON')
    arguments = parser.parse_args()
    found = list(doctor_report.findings(doctor_report.checks(probe())))
    print(doctor_report.as_json(found) if arguments.json else doctor_report.as_text(found))
    sys.exit(int(doctor_report.is_broken(found)))


if __name__ == '__main__':
    main()
