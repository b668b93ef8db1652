"""Look for what is wrong with the data of a config: python tools/check_data.py configs/mask_rcnn_shvit_s4_coco.py"""

import argparse
import sys

from ..common.atomic_files import save_json
from ..common.errors import keeping
from ..configuration.cfg_options import add_cfg_options
from ..configuration.data_check import check_data, write_copies
from ..data.checking.data_set_check import CheckedSet
from . import cli

FOUND_STATUS = 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Check the COCO data sets that a config would use: annotations and images. '
        'Exit status 0: no errors, 1: errors, or not all could be written, 2: the check could not run.'
    )
    add = parser.add_argument
    add('config', help='config file, or the name of a config of ours')
    how = parser.add_mutually_exclusive_group()
    how.add_argument('--headers-only', action='store_true', help='open every image, decode none')
    how.add_argument('--no-images', action='store_true', help='only see that the images exist')
    add('--workers', type=int, metavar='N', help='threads that decode [all processors]')
    add('--examples', type=int, default=3, metavar='N', help='examples of each kind [%(default)s]')
    add('--json', metavar='FILE', help='write what was found into this file too')
    add('--fix', metavar='DIR', help='write cleaned copies of the annotation files into this folder')
    add('--allow-loss', action='store_true', help='with --fix: also if most images or objects are removed')
    add('--data-root', metavar='DIR', help='another folder in the same layout')
    add_cfg_options(parser)
    arguments = parser.parse_args()
    found: list[CheckedSet] = []
    done: list[str] = []
    written: list[str] = []

    def tell(checked: CheckedSet) -> None:
        cli.show_progress('')
        print(checked.as_text(arguments.examples))
        found.append(checked)

    def copies() -> list[str]:  # those that are there: none was before
        return [str(each.target) for each in found if each.target is not None and each.target.exists()]

    with keeping(lambda: copies() + written):
        try:
            check_data(
                arguments.config,
                data_root=arguments.data_root,
                cfg_options=arguments.cfg_options,
                images='presence' if arguments.no_images else 'headers' if arguments.headers_only else 'decode',
                workers=arguments.workers,
                fix=arguments.fix,
                progress=cli.show_progress,
                tell=tell,
            )
            write_copies(found, done, arguments.allow_loss)
        finally:  # decoding may have taken an hour
            for sentence in done:
                print(sentence)
            if arguments.json and found:
                record = {'sets': [each.as_record(arguments.examples) for each in found], 'fixed': done}
                save_json(arguments.json, record, indent=1, default=str)
                written.append(arguments.json)
    if any(each.has_errors for each in found):
        sys.exit(FOUND_STATUS)
