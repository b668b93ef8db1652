"""Write a config for one's own data: python tools/init.py retinanet_shvit_s1_coco --data DIR --out my.py"""

from shvit_det.commands import run

if __name__ == '__main__':
    run('init')
