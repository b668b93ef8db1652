"""Write a trained detector as one file for other runtimes: python tools/export.py CONFIG CHECKPOINT --to onnx"""

import argparse

from mmengine.config import DictAction

from shvit_det.engine import cli
from shvit_det.export.exporting import SUFFIXES, export


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Write a RetinaNet, Faster R-CNN or Mask R-CNN as one file, from image tensor to detections.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file; random: weights that were not trained')
    parser.add_argument('--to', choices=list(SUFFIXES), required=True, help='the format')
    parser.add_argument('--out', metavar='FILE', help='where to [CHECKPOINT.onnx or .xml, in this folder]')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='changes of the config, model.test_cfg.score_thr=0.3 for instance',
    )
    arguments = parser.parse_args()
    export(arguments.config, arguments.checkpoint, arguments.to, arguments.out, arguments.cfg_options)


if __name__ == '__main__':
    cli.run(main)
