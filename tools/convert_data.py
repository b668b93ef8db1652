"""Write a data set in another layout: python tools/convert_data.py IN OUT --to coco"""

from shvit_det.commands import run

if __name__ == '__main__':
    run('convert-data')
