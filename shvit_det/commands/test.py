"""Test a checkpoint: python tools/test.py CONFIG CHECKPOINT --eval bbox segm"""

import argparse

from ..evaluation.evaluate import evaluate
from . import cli


def main() -> None:
    parser = argparse.ArgumentParser(description='Test a checkpoint on the test split of its config.')
    add = parser.add_argument
    add('config', help='config file, or the name of a config of ours')
    add('checkpoint', help='checkpoint file, or one of tools/export.py')
    add(
        '--eval',
        dest='metrics',
        nargs='+',
        metavar='METRIC',
        help='bbox, segm, proposal, proposal_fast for detectors; accuracy for classifiers',
    )
    add('--out', metavar='PKL', help='write the predictions into this file')
    add('--show-dir', metavar='DIR', help='draw ground truth and predictions into this folder')
    add('--report', metavar='DIR', help='write DIR/index.html: scores, curves, kinds of error, the worst pictures')
    add('--classwise', action='store_true', help='print the AP of every class')
    add('--format-only', action='store_true', help='write COCO result files, compute no metric')
    add('--deploy', dest='deployed', action='store_true', help='test the deployed form: the same results, faster')
    add(
        '--dtype', choices=['bfloat16', 'float16'], help='with --deploy: compute in this type, faster still but rounded'
    )
    add('--tta', action='store_true', help='test-time augmentation: as tta_pipeline of the config says, or flipped')
    cli.add_run_arguments(parser)
    options = cli.run_options(parser.parse_args())
    evaluate(options.pop('config'), options.pop('checkpoint'), **options)
