"""Train a detector or classifier: python tools/train.py configs/mask_rcnn_shvit_s4_coco.py

With ``--data DIR``, on one's own data set, by a config that is written into the work dir.
"""

import argparse
import os
from pathlib import Path

from ..common.errors import UsageError
from ..configuration.own_data import own_config, remove
from ..configuration.reading import name_of
from ..training.hook_options import LOGGERS
from ..training.resuming import AUTO
from ..training.train import train
from . import cli
from .init import SETTINGS, add_no_pretrained, add_own_data_arguments, settings_of


def write_own_config(arguments: argparse.Namespace) -> tuple[Path, list[Path]]:
    """Write the config for ``--data`` into the work dir; return it, and the files that were not there before."""
    if int(os.environ.get('WORLD_SIZE', 1)) > 1 or arguments.launcher not in (None, 'none'):
        raise UsageError('--data is for one process: write the config with shvit-det init, and train that with several')
    if arguments.data_root is not None:
        raise UsageError('--data and --data-root both name the data: give one of them')
    default = Path('work_dirs', f'{name_of(arguments.config)}_{Path(arguments.data).resolve().name}')
    work_dir = Path(arguments.work_dir or default)
    made = own_config(arguments.config, arguments.data, settings_of(arguments), work_dir / 'annotations', work_dir)
    path = work_dir / 'config.py'
    new = made.write(path)
    print('\n'.join([*made.lines, f'config: {path}']))
    return path, new


def main() -> None:
    parser = argparse.ArgumentParser(description='Train the detector or the classifier of a config.')
    parser.add_argument('config', help='config file, or the name of a config of ours')
    own_data = parser.add_argument_group(
        'your own data', 'a config for it is written into the work dir, as config.py, and trained'
    )
    add_own_data_arguments(own_data)
    parser.add_argument(
        '--resume', nargs='?', const=AUTO, metavar='PATH', help='go on from PATH, or from the last checkpoint'
    )
    add_no_pretrained(parser)
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
    parser.add_argument(
        '--ema', action='store_true', help='average the weights over the steps; checkpoints have the average'
    )
    parser.add_argument('--save-best', metavar='SCORE', help='keep the checkpoint that is best in it: bbox, segm, ...')
    parser.add_argument(
        '--early-stop', type=int, metavar='N', help='end after N validations without a better score (of --save-best)'
    )
    parser.add_argument(
        '--val-loss', action='store_true', help='compute the losses of the validation images too, for curves.png'
    )
    parser.add_argument(
        '--log-to', nargs='+', choices=LOGGERS, default=(), help='show losses and scores in other programs too'
    )
    cli.add_run_arguments(parser)
    arguments = parser.parse_args()
    if arguments.data is None:
        if given := [name for name in SETTINGS if getattr(arguments, name) is not None]:
            raise UsageError(f'--{given[0].replace("_", "-")} needs --data DIR; without it, use --cfg-options')
        run_training(arguments, arguments.config)
        return
    config, new = write_own_config(arguments)
    try:
        run_training(arguments, str(config))
    except UsageError:
        remove(new)  # nothing has been written, then
        raise


def run_training(arguments: argparse.Namespace, config: str) -> None:
    train(
        config,
        work_dir=arguments.work_dir,
        resume=arguments.resume,
        pretrained=not arguments.no_pretrained,
        amp=arguments.amp,
        fast=arguments.fast,
        auto_scale_lr=arguments.auto_scale_lr,
        data_root=arguments.data_root,
        seed=arguments.seed,
        ema=arguments.ema,
        save_best=arguments.save_best,
        early_stop=arguments.early_stop,
        val_loss=arguments.val_loss,
        logged_to=arguments.log_to,
        launcher=cli.launcher_of(arguments),
        cfg_options=arguments.cfg_options,
    )
