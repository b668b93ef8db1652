"""Test a checkpoint: python tools/test.py CONFIG CHECKPOINT --eval bbox segm"""

from shvit_det.commands import run

if __name__ == '__main__':
    run('test')
