"""Predict pictures and videos: python tools/predict.py IMAGE|DIR|GLOB|VIDEO|URL|CAMERA ... --weights FILE --out DIR"""

import argparse
import sys
from pathlib import Path

import torch

from ..common.errors import UsageError
from ..configuration.cfg_options import add_cfg_options
from ..data.layouts.writing import WRITERS
from ..prediction.predict import DEFAULT_SCORE, predict
from ..prediction.run_over_inputs import FILE, FOLDER


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Predict pictures and videos: draws masks, boxes, names and scores, and writes a COCO file.',
        epilog='Exit status: 0, 1 if something could not be read or predicted, 2 if nothing could be started.',
    )
    add = parser.add_argument
    add(
        'named',
        metavar='INPUT',
        nargs='+',
        help='pictures, videos, folders, patterns, http(s) URLs, a camera by its number, a live stream by rtsp://...',
    )
    add('--weights', metavar='CHECKPOINT', required=True, help='a file or a URL')
    add('--config', metavar='CONFIG', help='[the one that the checkpoint carries]')
    add('--out', metavar='DIR', required=True, help=f'gets {FOLDER}/ and {FILE}; is never emptied')
    add('--score', type=float, default=DEFAULT_SCORE, metavar='S', help=f'leave out what is below [{DEFAULT_SCORE}]')
    add('--polygons', action='store_true', help=f'masks in {FILE} as polygons [run lengths]')
    add(
        '--labels', choices=tuple(WRITERS), help='write the pictures and their objects as a data set in this layout too'
    )
    add('--batch', type=int, default=1, metavar='N', help='pictures at once, of one size [1]')
    add('--tile', type=int, metavar='N', help='predict in overlapping tiles of NxN pixels')
    add('--tta', action='store_true', help='test-time augmentation: as tta_pipeline of the config says, or flipped')
    add('--device', help='cpu, cuda or cuda:N [a GPU if there is one]')
    add('--threads', type=int, metavar='N', help="of the CPU's kernels [torch's default]")
    add('--no-deploy', dest='deploy', action='store_false', help='predict with the model as it was trained')
    add_cfg_options(parser)
    options = vars(parser.parse_args())
    threads = options.pop('threads')
    if threads is not None:
        if threads < 1:
            raise UsageError(f'--threads has to be at least 1, but got {threads}')
        torch.set_num_threads(threads)
    done = predict(**options)
    predicted = done.inputs - done.failed
    print(
        f'{predicted} of {done.inputs} predicted, {done.objects} objects with a score of {options["score"]:g} or more'
    )
    out = Path(options['out'])
    print(f'Pictures: {out / FOLDER}   Results: {out / FILE}')
    for line in done.labels:
        print(line)
    if done.failed:
        kinds = ', '.join(f'{number} {kind}' for kind, number in done.kinds.items())
        print(f'{done.failed} failed, named above: {kinds}', file=sys.stderr)
        sys.exit(1)
