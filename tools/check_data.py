"""Look for what is wrong with the data of a config: python tools/check_data.py configs/mask_rcnn_shvit_s4_coco.py"""

from shvit_det.commands import run

if __name__ == '__main__':
    run('check-data')
