"""Draw the sample set, a stand-in until COCO is there: python tools/make_sample.py"""

from shvit_det.commands import run

if __name__ == '__main__':
    run('make-sample')
