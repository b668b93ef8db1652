"""Show the training data of a config as the model sees them: python tools/browse.py CONFIG --out DIR"""

from shvit_det.commands import run

if __name__ == '__main__':
    run('browse')
