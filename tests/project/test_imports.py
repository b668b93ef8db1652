"""What ``import shvit_det`` needs: users of backbones may have no mmdet, no mmpretrain and nothing to draw with."""

import subprocess
import sys

WITHOUT = """
import importlib.util, sys
ABSENT = ('mmdet', 'mmpretrain', 'matplotlib')

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ABSENT:
            raise ModuleNotFoundError(name)

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ABSENT else find_spec(name, package)
sys.meta_path.insert(0, Absent())
import shvit_det, torch
features = shvit_det.SHViT('s1', out_indices=(0, 1, 2)).eval()(torch.zeros(1, 3, 64, 64))
print([tuple(each.shape) for each in features])
try:
    shvit_det.Predictor
except ModuleNotFoundError as error:
    print('needs', error)
"""


def test_a_backbone_works_without_the_detection_stack():
    done = subprocess.run([sys.executable, '-c', WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shapes, needs = done.stdout.splitlines()
    assert shapes == '[(1, 128, 4, 4), (1, 224, 2, 2), (1, 320, 1, 1)]'
    assert needs.startswith('needs ')
