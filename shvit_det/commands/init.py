"""Write a config for one's own data: python tools/init.py retinanet_shvit_s1_coco --data DIR --out my.py"""

import argparse
from pathlib import Path

from ..common.errors import UsageError
from ..common.output_paths import check_output_file
from ..configuration.own_data import Settings, own_config

SETTINGS = ('epochs', 'batch_size', 'lr', 'image_size')


def add_own_data_arguments(group: 'argparse._ArgumentGroup | argparse.ArgumentParser') -> None:
    """Add the arguments of a data set and of a training on it."""
    add = group.add_argument
    add('--data', metavar='DIR', help='a data set in the layout of COCO, YOLO, Pascal VOC or LabelMe: docs/own_data.md')
    add('--epochs', type=int, metavar='N', help="length of the training [the config's]")
    add('--batch-size', type=int, metavar='N', help="images in a step [the config's]")
    add('--lr', type=float, metavar='X', help="learning rate [the config's, scaled to the batch]")
    add('--image-size', type=int, metavar='N', help="longer side of images, pixels [the config's]")


def add_no_pretrained(parser: 'argparse._ArgumentGroup | argparse.ArgumentParser') -> None:
    parser.add_argument(
        '--no-pretrained',
        dest='pretrained',
        action='store_false',
        help='start the backbone from random weights; with --data, with the settings for it: docs/own_data.md',
    )


def settings_of(arguments: argparse.Namespace) -> Settings:
    from_scratch = not arguments.pretrained
    return Settings(arguments.epochs, arguments.batch_size, arguments.lr, arguments.image_size, from_scratch)


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Write a config that trains a detector on your own data set: about ten lines over another config. '
        'Annotations in other layouts than COCO are written as COCO files into OUT_annotations, beside it.'
    )
    parser.add_argument('config', metavar='NAME', help='the config of a detector: a name of ours, or a file')
    add_own_data_arguments(parser)
    add_no_pretrained(parser)
    parser.add_argument('--out', type=Path, required=True, metavar='FILE', help='the new config, .py')
    arguments = parser.parse_args()
    out: Path = arguments.out
    if arguments.data is None:
        raise UsageError('--data DIR is needed: the folder of the data set')
    if out.suffix != '.py' or out.exists():
        raise UsageError(f'--out is {out}: name a new file that ends with .py')
    check_output_file(out, '--out')
    made = own_config(
        arguments.config, arguments.data, settings_of(arguments), out.with_name(f'{out.stem}_annotations')
    )
    made.write(out)
    print('\n'.join([*made.lines, f'config: {out}; train it with: shvit-det train {out}']))
