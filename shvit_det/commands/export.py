"""Write a model for another runtime: python tools/export.py CONFIG CHECKPOINT --to onnx|openvino|coreml|executorch"""

import argparse

from ..common.errors import UsageError
from ..configuration.cfg_options import add_cfg_options
from ..export.detector_export import SUFFIXES as DETECTOR_SUFFIXES
from ..export.detector_export import export_detector
from ..export.detector_weights import RANDOM
from ..export.phone_export import SUFFIXES as PHONE_SUFFIXES
from ..export.phone_export import export_part
from ..export.phone_parts import PARTS


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Write a model for another runtime. onnx and openvino: a whole RetinaNet, Faster R-CNN or Mask '
        'R-CNN, from image tensor to detections. coreml and executorch: a part of a model, for phones.'
    )
    add = parser.add_argument
    add('config', help='config file, or the name of a config of ours')
    add('checkpoint', help='checkpoint file; random: weights that were not trained')
    add('--to', choices=[*DETECTOR_SUFFIXES, *PHONE_SUFFIXES], required=True, help='the format')
    add('--out', metavar='FILE', help='where to [named after what is written, in this folder]')
    add('--part', choices=PARTS, help='for phones: what is written [the classifier, or of a detector the backbone]')
    add(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="for phones: of the image, in pixels [a classifier's crop, or for a detector 512 512]",
    )
    add_cfg_options(parser, 'for onnx and openvino: changes of the config, model.test_cfg.score_thr=0.3 for instance')
    arguments = parser.parse_args()
    config, checkpoint, to, out = arguments.config, arguments.checkpoint, arguments.to, arguments.out
    if to in DETECTOR_SUFFIXES:
        if arguments.part or arguments.shape:
            raise UsageError(
                f'--to {to} writes whole detectors for images of any size: --part and --shape are for phones'
            )
        export_detector(config, checkpoint, to, out, arguments.cfg_options)
    else:
        if arguments.cfg_options:
            raise UsageError(f'--cfg-options has no effect on the parts that --to {to} writes')
        weights = None if checkpoint == RANDOM else checkpoint
        shape = tuple(arguments.shape) if arguments.shape else None
        exported = export_part(config, weights, to, out, arguments.part, shape)
        print('\n'.join(exported.lines()))
