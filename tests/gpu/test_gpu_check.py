"""The script for the first GPU, rehearsed: a mistake in it would waste the little time that a GPU is lent for."""

import json
import subprocess
import sys
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement
from paths import ROOT
from processes import tool

SCRIPT = ROOT / 'tools' / 'dev' / 'gpu_check.py'
REHEARSAL = ('--device', 'cpu', '--tiny')


def check_losses(found):
    assert all(each['largest_relative_difference'] == 0 for each in found.values())  # the CPU and itself


def check_prediction(found):
    assert all(each['share_found_again'] > 0.9 for name, each in found.items() if '16' not in name)


def check_training(found):
    assert {each['batch'] for each in found.values()} == {2}


PARTS = dict(
    environment=lambda found: found['packages'],
    losses=check_losses,
    prediction=check_prediction,
    training=check_training,
    detectors=lambda found: found['mask_rcnn']['subjects'],
    backbones=lambda found: found['batch 1, float32']['subjects'],
    tests=lambda found: found['output'],
    resuming=lambda found: found['output'],
)


@pytest.mark.slow(15)
@pytest.mark.parametrize('name', PARTS)
def test_every_part_of_the_rehearsal_ends_well(name, tmp_path):
    result = tool(SCRIPT, '--part', name, '--out', tmp_path, *REHEARSAL, cwd=tmp_path, timeout=600)
    assert result.returncode == 0, result.stderr
    text = (tmp_path / f'{name}.json').read_text()
    assert '"error":' not in text, text
    check = PARTS[name]
    check(json.loads(text))


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_stopped_and_the_next_ones_are_named(tmp_path):
    command = [sys.executable, str(SCRIPT), '--out', str(tmp_path), *REHEARSAL, '--seconds', '6']
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    ends = {name: each['how'] for name, each in json.loads((tmp_path / 'summary.json').read_text()).items()}
    assert done.returncode == 1 and list(ends) == list(PARTS)
    assert ends['training'] == 'no time left' and set(ends.values()) <= {
        'done',
        'stopped: it took too long',
        'no time left',
    }


@pytest.mark.skipif(sys.version_info < (3, 11), reason='the list is for Python 3.12, and 3.10 has older releases')
def test_the_list_of_wheels_has_all_that_the_packages_need():
    text = (ROOT / 'tools' / 'dev' / 'gpu_wheels.txt').read_text()
    listed = {line for line in text.splitlines() if not line.startswith('#')}
    there = {
        'torch',
        'torchvision',
        'numpy',
        'fsspec',
        'typing-extensions',
        'opencv-python',
    }  # the last under another name
    for name in sorted(listed - {'opencv-python-headless'}):
        needs = [Requirement(each) for each in distribution(name).requires or []]
        wanted = {need.name for need in needs if need.marker is None or need.marker.evaluate({'extra': ''})}
        missing = {each.lower().replace('_', '-') for each in wanted} - listed - there
        assert not missing, f'{name} needs {missing}'
