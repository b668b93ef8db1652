"""Time a detector by part, or backbones: python tools/benchmark.py CONFIG [CHECKPOINT] [--against OTHER ...]"""

from shvit_det.commands import run

if __name__ == '__main__':
    run('benchmark')
