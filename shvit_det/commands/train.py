"""Train a detector or classifier: python tools/train.py configs/mask_rcnn_shvit_s4_coco.py"""

import argparse

from ..training.resuming import AUTO
from ..training.train import train
from . import cli


def main() -> None:
    parser = argparse.ArgumentParser(description='Train the detector or the classifier of a config.')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume', nargs='?', const=AUTO, metavar='PATH', help='go on from PATH, or from the last checkpoint'
    )
    parser.add_argument('--no-pretrained', action='store_true', help='start the backbone from random weights')
    parser.add_argument(
        '--fast',
        action='store_true',
        help='channels-last, a fused optimizer, and mixed precision where the hardware has bfloat16',
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: bfloat16, or float16 on a GPU that lacks it'
    )
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the total batch')
    parser.add_argument('--seed', type=int, help='seed of all random numbers')
    cli.add_run_arguments(parser)
    arguments = parser.parse_args()
    train(
        arguments.config,
        work_dir=arguments.work_dir,
        resume=arguments.resume,
        pretrained=not arguments.no_pretrained,
        amp=arguments.amp,
        fast=arguments.fast,
        auto_scale_lr=arguments.auto_scale_lr,
        data_root=arguments.data_root,
        seed=arguments.seed,
        launcher=cli.launcher_of(arguments),
        cfg_options=arguments.cfg_options,
    )
