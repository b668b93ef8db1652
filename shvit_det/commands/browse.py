"""Show training data as the model sees them: python tools/browse.py CONFIG --out DIR, or a data set's folder"""

import argparse

from ..configuration.cfg_options import add_cfg_options
from ..evaluation.data_page import browse


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Write a page with training images as the pipeline of a config hands them to the model, augmented, '
        'with masks, boxes and names, and with statistics of the data set. A folder of data needs no config.'
    )
    add = parser.add_argument
    add(
        'source',
        metavar='CONFIG|DIR',
        help='config file of a detector, or a data set in the layout of COCO, YOLO, Pascal VOC or LabelMe',
    )
    add('--out', required=True, metavar='DIR', help='write DIR/index.html')
    add('--number', type=int, default=24, metavar='N', help='images to show [%(default)s]')
    add('--seed', type=int, default=0, metavar='N', help='of the augmentation [%(default)s]')
    add('--data-root', metavar='DIR', help='another folder in the same layout')
    add_cfg_options(parser)
    page = browse(**vars(parser.parse_args()))
    print(f'Page: {page}')
