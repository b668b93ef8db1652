"""Write a model for another runtime: python tools/export.py CONFIG [CHECKPOINT] --to coreml|executorch"""

import argparse

from shvit_det.engine import cli
from shvit_det.export.parts import PARTS
from shvit_det.export.phone import SUFFIXES, export_phone


def main() -> None:
    parser = argparse.ArgumentParser(description='Write a part of a model as a file for phones.')
    parser.add_argument('config', metavar='CONFIG', help='config of a detector or a classifier')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', nargs='?', help='its weights [random ones]')
    parser.add_argument('--to', choices=list(SUFFIXES), required=True, help='Core ML or ExecuTorch with XNNPACK')
    parser.add_argument('--part', choices=PARTS, help='[the classifier, or of a detector the backbone]')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help="[a classifier's crop, or for a detector 512 512]"
    )
    parser.add_argument('--out', metavar='FILE', help='what to write, .mlpackage or .pte [CONFIG_PART]')
    arguments = parser.parse_args()
    exported = export_phone(
        arguments.config,
        arguments.checkpoint,
        arguments.to,
        arguments.out,
        arguments.part,
        arguments.shape and tuple(arguments.shape),
    )
    print('\n'.join(exported.lines()))


if __name__ == '__main__':
    cli.run(main)
