"""Write a checkpoint under other names: python tools/convert_checkpoint.py IN OUT --to ours"""

from shvit_det.commands import run

if __name__ == '__main__':
    run('convert-checkpoint')
