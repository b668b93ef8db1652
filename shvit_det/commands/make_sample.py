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


def main() -> None:
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
    options = vars(parser.parse_args())
    out, force, preview = (options.pop(name) for name in ('out', 'force', 'preview'))
    if preview and preview.parent not in out.parents:  # which are made
        check_output_file(preview, '--preview')
    drawn = True
    start = time.perf_counter()
    try:
        if force:
            draw_sample(out, **options, force=True)
        else:
            drawn = ensure_sample(out, **options)
    except OSError as error:
        raise UsageError(f'cannot write {error.filename}: {error.strerror}') from error
    duration_s = time.perf_counter() - start
    size = options['image_size']
    contents = f'{options["num_train"]} train and {options["num_val"]} val images of {size} x {size} pixels in {out}'
    print(f'Drew {contents} in {duration_s:.1f} s.' if drawn else f'Kept {contents}.')
    if preview:
        try:
            draw_preview(out, preview)
        except OSError as error:
            raise RunError(f'cannot write {preview}: {error.strerror}; the images are kept') from error
    print('They are a stand-in for COCO, to try things on; scores on them say nothing about COCO.')
