"""The notebook runs from its first cell to its last, on a tiny detector and a few pictures."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from paths import MASK_RCNN, ROOT
from PIL import Image

NOTEBOOK = ROOT / 'docs' / 'quickstart.ipynb'
TINY = f'CONFIG, EPOCHS, NUM_TRAIN, NUM_VAL = {str(MASK_RCNN)!r}, 1, 8, 4'  # after the cell of settings


def cells(kind):
    return [cell for cell in json.loads(NOTEBOOK.read_text())['cells'] if cell['cell_type'] == kind]


def run_command(line, names, folder):
    """Run what follows the exclamation mark in a cell, with the values that it has in braces."""
    program, *arguments = shlex.split(line.format_map(names))
    assert program == 'shvit-det'
    subprocess.run([sys.executable, '-m', 'shvit_det', *arguments], cwd=folder, check=True, timeout=120)


def test_it_is_short_and_has_no_outputs():
    assert all(cell['outputs'] == [] and cell['execution_count'] is None for cell in cells('code'))
    assert sum(len(cell['source']) for cell in cells('code')) <= 30
    assert len({cell['id'] for kind in ('code', 'markdown') for cell in cells(kind)}) == len(cells('code')) + len(
        cells('markdown')
    )


def test_its_links_and_the_installed_folder_are_there():
    text = ''.join(line for cell in cells('markdown') for line in cell['source'])
    targets = re.findall(r'\]\(([^)#]+)', text)
    assert len(targets) > 3 and [target for target in targets if not (ROOT / 'docs' / target).is_file()] == []
    (install,) = (cell['source'][-1] for cell in cells('code') if cell['id'] == 'install')
    assert shlex.split(install) == ['%pip', 'install', '--quiet', '--constraint', '../constraints.txt', '..[lite]']


@pytest.mark.slow(30)
def test_its_cells_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    shown = []
    names = {'display': shown.append}
    for cell in cells('code'):
        commands = [line[1:] for line in cell['source'] if line.startswith('!')]
        for command in commands:
            run_command(command, names, tmp_path)
        if not commands and cell['id'] != 'install':
            exec(''.join(cell['source']), names)
        if 'parameters' in cell['metadata'].get('tags', ()):
            exec(TINY, names)
    (picture,) = shown
    assert isinstance(picture, Image.Image) and picture.size == (576, 576)  # 192 pixels, enlarged
    assert names['picture'].parent.name == 'val2017'
    assert names['predictor'].classes == ('disc', 'square', 'triangle', 'star', 'cross')
    report = (tmp_path / 'quickstart' / 'report' / 'index.html').read_text()
    assert report.startswith('<!DOCTYPE html>') and 'epoch_1.pth' in names['checkpoint']
    assert [path.name for path in tmp_path.iterdir()] == ['quickstart']
