"""Draw the sample set: shapes in COCO's format, a stand-in until COCO is there.

    python tools/make_sample.py
    python tools/make_sample.py --out data/sample --preview sample.png

A set that is there already, drawn with the same arguments, is kept.
"""

import argparse
import time
from pathlib import Path

from ..common.errors import RunError, UsageError
from ..common.output_paths import check_output_file
from ..data.preview import draw_preview
from ..data.sample import draw_sample, ensure_sample


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Draw a small data set in the format and layout of COCO: a stand-in, to try a detector on until '
        'COCO is there.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--out', type=Path, default=Path('data/sample'), metavar='DIR', help='folder to draw into')
    add('--num-train', type=int, default=400, metavar='N', help='images of train2017')
    add('--num-val', type=int, default=100, metavar='N', help='images of val2017')
    add('--image-size', type=int, default=192, metavar='PIXELS', help='height and width of the images')
    add('--seed', type=int, default=0, metavar='N', help='the same seed draws the same set')
    add(
        '--force',
        action='store_true',
        help='draw anew, and replace a sample set drawn with other arguments; '
        'a folder that is not a sample set is never replaced',
    )
    add('--preview', type=Path, metavar='PNG', help='also write a picture of val2017 with its ground truth')
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    num_train, num_val, size = arguments.num_train, arguments.num_val, arguments.image_size
    parameters = dict(num_train=num_train, num_val=num_val, image_size=size, seed=arguments.seed)
    if arguments.preview and arguments.preview.parent not in arguments.out.parents:  # which are made
        check_output_file(arguments.preview, '--preview')
    drawn = True
    start = time.perf_counter()
    try:
        if arguments.force:
            draw_sample(arguments.out, **parameters, force=True)
        else:
            drawn = ensure_sample(arguments.out, **parameters)
    except OSError as error:
        raise UsageError(f'cannot write {error.filename}: {error.strerror}') from error
    duration_s = time.perf_counter() - start
    contents = f'{num_train} train and {num_val} val images of {size} x {size} pixels in {arguments.out}'
    print(f'Drew {contents} in {duration_s:.1f} s.' if drawn else f'Kept {contents}.')
    if arguments.preview:
        try:
            draw_preview(arguments.out, arguments.preview)
        except OSError as error:
            raise RunError(f'cannot write {arguments.preview}: {error.strerror}; the images are kept') from error
    print('They are a stand-in for COCO, to try things on; scores on them say nothing about COCO.')
