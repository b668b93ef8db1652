"""Draw the sample set: shapes in COCO's format, a stand-in until COCO is there.

    python tools/make_sample.py
    python tools/make_sample.py --out data/sample --preview sample.png

A set that is there already, drawn with the same arguments, is kept.
"""

import argparse
import time
from pathlib import Path

from ..common.errors import UsageError
from ..data.preview import draw_preview
from ..data.sample import draw_sample, ensure_sample


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Draw a small data set in the format and layout of COCO: a stand-in, to try '
        'a detector on until COCO is there.'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('data/sample'),
        metavar='DIR',
        help='folder to draw into (default: %(default)s)',
    )
    parser.add_argument(
        '--num-train', type=int, default=400, metavar='N', help='images of train2017 (default: %(default)s)'
    )
    parser.add_argument(
        '--num-val', type=int, default=100, metavar='N', help='images of val2017 (default: %(default)s)'
    )
    parser.add_argument(
        '--image-size',
        type=int,
        default=192,
        metavar='PIXELS',
        help='height and width of the images (default: %(default)s)',
    )
    parser.add_argument(
        '--seed', type=int, default=0, metavar='N', help='the same seed draws the same set (default: %(default)s)'
    )
    parser.add_argument(
        '--force',
        action='store_true',
        help='draw anew, and replace a sample set drawn with other arguments; '
        'a folder that is not a sample set is never replaced',
    )
    parser.add_argument(
        '--preview', type=Path, metavar='PNG', help='also write a picture of val2017 with its ground truth'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    parameters = {
        'num_train': args.num_train,
        'num_val': args.num_val,
        'image_size': args.image_size,
        'seed': args.seed,
    }
    drawn = True
    start = time.perf_counter()
    try:
        if args.force:
            draw_sample(args.out, **parameters, force=True)
        else:
            drawn = ensure_sample(args.out, **parameters)
        duration_s = time.perf_counter() - start
        if args.preview:
            draw_preview(args.out, args.preview)
    except OSError as error:
        raise UsageError(f'cannot write {error.filename}: {error.strerror}') from error
    contents = (
        f'{args.num_train} train and {args.num_val} val images of {args.image_size} x {args.image_size} pixels '
        f'in {args.out}'
    )
    print(f'Drew {contents} in {duration_s:.1f} s.' if drawn else f'Kept {contents}.')
    print('They are a stand-in for COCO, to try things on; scores on them say nothing about COCO.')
