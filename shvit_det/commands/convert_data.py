"""Write a data set in another layout: python tools/convert_data.py IN OUT --to coco

Read are COCO's layout, YOLO's, Pascal VOC's and LabelMe's. Pictures are copied. What is left out is named and counted.
"""

import argparse

from ..data.layouts.reading import AUTO, LAYOUTS
from ..data.layouts.writing import WRITERS, convert_data


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Read a data set in one layout and write it in another, with copies of its pictures. Nothing is '
        'left out without being named and counted.'
    )
    add = parser.add_argument
    add('source', metavar='IN', help='folder of the data set')
    add('target', metavar='OUT', help='a new folder')
    add(
        '--from', dest='layout', choices=(AUTO, *sorted(LAYOUTS)), default=AUTO, help='layout of IN [as its files show]'
    )
    add('--to', choices=tuple(WRITERS), required=True, help='layout of OUT')
    arguments = parser.parse_args()
    print('\n'.join(convert_data(arguments.source, arguments.target, arguments.layout, arguments.to)))
