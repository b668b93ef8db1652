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


def write_own_config(arguments: argparse.Namespace) -> tuple[str, list[Path]]:
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
    return str(path), new


def main() -> None:
    parser = argparse.ArgumentParser(description='Train the detector or the classifier of a config.')
    add = parser.add_argument
    add('config', help='config file, or the name of a config of ours')
    own_data = parser.add_argument_group(
        'your own data', 'a config for it is written into the work dir, as config.py, and trained'
    )
    add_own_data_arguments(own_data)
    add('--resume', nargs='?', const=AUTO, metavar='PATH', help='go on from PATH, or from the last checkpoint')
    add_no_pretrained(parser)
    add(
        '--fast',
        action='store_true',
        help='channels-last, a fused optimizer, and mixed precision where the hardware has bfloat16',
    )
    add('--amp', action='store_true', help='mixed precision: bfloat16, or float16 on a GPU that lacks it')
    add('--auto-scale-lr', action='store_true', help='scale the learning rate to the total batch')
    add('--seed', type=int, help='seed of all random numbers')
    add('--ema', action='store_true', help='average the weights over the steps; checkpoints have the average')
    add('--save-best', metavar='SCORE', help='keep the checkpoint that is best in it: bbox, segm, ...')
    add('--early-stop', type=int, metavar='N', help='end after N validations without a better score (of --save-best)')
    add('--val-loss', action='store_true', help='compute the losses of the validation images too, for curves.png')
    add(
        '--log-to',
        dest='logged_to',
        nargs='+',
        choices=LOGGERS,
        default=(),
        help='show losses and scores in other programs too',
    )
    cli.add_run_arguments(parser)
    arguments = parser.parse_args()
    config = arguments.config
    new: list[Path] = []
    if arguments.data is not None:
        config, new = write_own_config(arguments)
    elif given := [name for name in SETTINGS if getattr(arguments, name) is not None]:
        raise UsageError(f'--{given[0].replace("_", "-")} needs --data DIR; without it, use --cfg-options')
    try:
        options = cli.run_options(arguments)
        for name in ('config', 'data', *SETTINGS):  # they are in the config
            del options[name]
        train(config, **options)
    except UsageError:
        remove(new)  # nothing has been written, then
        raise
