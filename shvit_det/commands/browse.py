"""Show training data as the model sees them: python tools/browse.py CONFIG --out DIR, or a data set's folder"""

import argparse

from ..configuration.cfg_options import add_cfg_options
from ..evaluation.data_page import browse


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Write a page with training images as the pipeline of a config hands them to the model, augmented, '
        'with masks, boxes and names, and with statistics of the data set. A folder of data needs no config.'
    )
    parser.add_argument(
        'source',
        metavar='CONFIG|DIR',
        help='config file of a detector, or a data set in the layout of COCO, YOLO, Pascal VOC or LabelMe',
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='write DIR/index.html')
    parser.add_argument('--number', type=int, default=24, metavar='N', help='images to show [%(default)s]')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of the augmentation [%(default)s]')
    parser.add_argument('--data-root', metavar='DIR', help='another folder in the same layout')
    add_cfg_options(parser)
    arguments = parser.parse_args()
    page = browse(
        arguments.source,
        arguments.out,
        number=arguments.number,
        seed=arguments.seed,
        data_root=arguments.data_root,
        cfg_options=arguments.cfg_options,
    )
    print(f'Page: {page}')
