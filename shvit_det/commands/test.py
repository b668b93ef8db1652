"""Test a checkpoint: python tools/test.py CONFIG CHECKPOINT --eval bbox segm"""

import argparse

from ..evaluation.evaluate import evaluate
from . import cli


def main() -> None:
    parser = argparse.ArgumentParser(description='Test a checkpoint on the test split of its config.')
    parser.add_argument('config', help='config file, or the name of a config of ours')
    parser.add_argument('checkpoint', help='checkpoint file, or one of tools/export.py')
    parser.add_argument(
        '--eval',
        nargs='+',
        metavar='METRIC',
        help='bbox, segm, proposal, proposal_fast for detectors; accuracy for classifiers',
    )
    parser.add_argument('--out', metavar='PKL', help='write the predictions into this file')
    parser.add_argument('--show-dir', metavar='DIR', help='draw ground truth and predictions into this folder')
    parser.add_argument(
        '--report', metavar='DIR', help='write DIR/index.html: scores, curves, kinds of error, the worst pictures'
    )
    parser.add_argument('--classwise', action='store_true', help='print the AP of every class')
    parser.add_argument('--format-only', action='store_true', help='write COCO result files, compute no metric')
    parser.add_argument('--deploy', action='store_true', help='test the deployed form: the same results, faster')
    parser.add_argument(
        '--dtype', choices=['bfloat16', 'float16'], help='with --deploy: compute in this type, faster still but rounded'
    )
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation: as tta_pipeline of the config says, or flipped'
    )
    cli.add_run_arguments(parser)
    arguments = parser.parse_args()
    evaluate(
        arguments.config,
        arguments.checkpoint,
        metrics=arguments.eval,
        out=arguments.out,
        show_dir=arguments.show_dir,
        report=arguments.report,
        classwise=arguments.classwise,
        format_only=arguments.format_only,
        deployed=arguments.deploy,
        dtype=arguments.dtype,
        tta=arguments.tta,
        data_root=arguments.data_root,
        work_dir=arguments.work_dir,
        launcher=cli.launcher_of(arguments),
        cfg_options=arguments.cfg_options,
    )
