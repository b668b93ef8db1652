"""Train a detector or classifier: python tools/train.py configs/mask_rcnn_shvit_s4_coco.py"""

from shvit_det.commands import run

if __name__ == '__main__':
    run('train')
