"""The script for the first GPU, rehearsed: a mistake in it would waste the little time that a GPU is lent for."""

import json
import subprocess
import sys
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement
from paths import ROOT

SCRIPT = str(ROOT / 'tools' / 'dev' / 'gpu_check.py')


@pytest.mark.slow(120)
def test_every_part_of_the_rehearsal_ends_well(tmp_path):
    command = [sys.executable, SCRIPT, '--out', tmp_path, '--device', 'cpu', '--tiny', '--seconds', '1200']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert done.returncode == 0, summary
    assert {each['how'] for each in summary.values()} == {'done'} and len(summary) == 8
    found = {name: json.loads((tmp_path / f'{name}.json').read_text()) for name in summary}
    assert all(each['largest_relative_difference'] == 0 for each in found['losses'].values())  # the CPU and itself
    assert all(each['share_found_again'] > 0.9 for name, each in found['prediction'].items() if '16' not in name)
    assert {each['batch'] for each in found['training'].values()} == {2}
    assert found['backbones']['batch 1, float32']['subjects'] and found['detectors']['mask_rcnn']['subjects']


def test_a_part_that_takes_too_long_is_stopped_and_the_next_one_is_named(tmp_path):
    command = [sys.executable, SCRIPT, '--out', tmp_path, '--device', 'cpu', '--tiny', '--seconds', '6']
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    ends = {name: each['how'] for name, each in json.loads((tmp_path / 'summary.json').read_text()).items()}
    assert done.returncode == 1
    assert ends['training'] == 'no time left' and set(ends.values()) <= {
        'done',
        'stopped: it took too long',
        'no time left',
    }


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
