"""Where the tests find the checkout, a small detector, and real photographs where they are there."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MASK_RCNN = ROOT / 'tests' / 'data' / 'tiny_mask_rcnn.py'


def photographs(name: str) -> Path:
    """Return the folder of a data set of real photographs beside the checkout, or skip the test."""
    folder = Path(os.environ.get('SHVIT_DET_TEST_DATA', ROOT.parent / 'shared' / 'data')) / name
    if not folder.is_dir():
        pytest.skip(f'the photographs are not here: no folder {folder}; SHVIT_DET_TEST_DATA names another place')
    return folder
