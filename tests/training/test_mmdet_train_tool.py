"""mmdet's own ``tools/train.py`` with our configs: the config alone brings the runner, the loop and the hooks."""

import signal
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from processes import Result, tool
from tool_runs import RETINANET, succeeded

from shvit_det.checkpoint.reading import read_content
from shvit_det.data.checking.findings import CHECK
from shvit_det.training.resuming import last_checkpoint

SCRIPT = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'train.py'  # in every installation but an editable one
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SCRIPT.is_file(), reason='mmdet is installed without its tools')]
SEED = 'randomness = dict(seed=3)'
SIGNAL = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class SignalHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 4:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def train_as_mmdet(*arguments: object, cwd: Path) -> Result:
    return tool(SCRIPT, *arguments, cwd=cwd, environment=dict(PYTHONPATH=str(cwd)))


def written_config(folder: Path, name: str = 'config.py', *lines: str) -> str:
    (folder / name).write_text('\n'.join([f'_base_ = {str(RETINANET)!r}', *lines, '']))
    return name


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """A folder with a run of our tool, of three epochs."""
    folder = tmp_path_factory.mktemp('mmdet_train')
    written_config(folder, 'config.py', SEED, 'train_cfg = dict(max_epochs=3)')
    succeeded(tool('train', 'config.py', '--work-dir', 'ours', cwd=folder))
    return folder


def assert_same_end(one: Path, other: Path) -> None:
    first, second = (read_content(last_checkpoint(folder)) for folder in (one, other))
    assert first['meta']['epoch'] == second['meta']['epoch'] == 3
    torch.testing.assert_close(first['state_dict'], second['state_dict'], rtol=0, atol=0)


def test_it_trains_what_our_tool_trains(trained):
    """In a process that knows of this package by the config alone; the other tests have imported it before."""
    command = [sys.executable, str(SCRIPT), 'config.py', '--work-dir', 'theirs']
    result = subprocess.run(command, cwd=trained, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert_same_end(trained / 'ours', trained / 'theirs')


def end_early(folder: Path, config: str, work_dir: str) -> dict:
    """Let a signal end a run of mmdet's tool in its fifth iteration; return what the last checkpoint holds."""
    (folder / 'signal_hook.py').write_text(SIGNAL)
    (folder / 'signalled.py').write_text(
        f"_base_ = {config!r}\ncustom_imports = dict(imports=['shvit_det', 'signal_hook'])\n"
        "custom_hooks = [dict(type='SignalHook')]\n"
    )
    result = train_as_mmdet('signalled.py', '--work-dir', work_dir, cwd=folder)
    assert result.returncode == 128 + signal.SIGTERM and 'Traceback' not in result.stderr, result.stderr[-3000:]
    last = last_checkpoint(folder / work_dir)
    assert last.name == 'interrupted.pth'
    content = read_content(last)
    assert content['meta']['iter'] == 5
    return content


def test_a_signal_ends_it_and_it_goes_on_where_it_was(trained):
    end_early(trained, 'config.py', 'ended')
    succeeded(train_as_mmdet('config.py', '--work-dir', 'ended', '--resume', cwd=trained))
    assert_same_end(trained / 'ours', trained / 'ended')


def test_a_resumed_run_keeps_the_seed_that_was_drawn(trained):
    written_config(trained, 'unseeded.py', 'train_cfg = dict(max_epochs=3)')
    seed = end_early(trained, 'unseeded.py', 'unseeded')['meta']['seed']
    result = train_as_mmdet('config.py', '--work-dir', 'unseeded', '--resume', cwd=trained)  # which has another one
    assert result.returncode == 1 and f'with seed {seed}, but the seed given is 3: leave it out' in result.stderr
    succeeded(train_as_mmdet('unseeded.py', '--work-dir', 'unseeded', '--resume', cwd=trained))
    whole = ('--work-dir', 'whole', '--cfg-options', f'randomness.seed={seed}')
    succeeded(train_as_mmdet('unseeded.py', *whole, cwd=trained))
    assert_same_end(trained / 'unseeded', trained / 'whole')


def test_weights_that_a_checkpoint_replaces_are_not_fetched(trained):
    backbone = (
        "model = dict(backbone=dict(init_cfg=dict(_delete_=True, type='SHViTPretrained', checkpoint='missing.pth')))"
    )
    written_config(trained, 'pretrained.py', SEED, 'train_cfg = dict(max_epochs=1)', backbone)
    start = f'load_from={last_checkpoint(trained / "ours")}'
    succeeded(train_as_mmdet('pretrained.py', '--cfg-options', start, cwd=trained))
    written_config(trained, 'pretrained.py', SEED, 'train_cfg = dict(max_epochs=2)', backbone)
    succeeded(train_as_mmdet('pretrained.py', '--resume', cwd=trained))


def test_images_are_checked_as_bad_data_says(tmp_path):
    written_config(tmp_path, 'config.py', 'train_cfg = dict(max_epochs=1)')
    succeeded(train_as_mmdet('config.py', '--work-dir', 'drawn', cwd=tmp_path))  # it draws the sample set too
    image = tmp_path / 'data' / 'sample' / 'train2017' / '000000001009.jpg'
    image.write_bytes(image.read_bytes()[:-200])
    result = train_as_mmdet('config.py', '--work-dir', 'refused', cwd=tmp_path)
    assert result.returncode == 1
    assert image.name in result.stderr and f'{CHECK} finds all such images' in result.stderr
    options = ('--cfg-options', 'bad_data=skip')
    result = train_as_mmdet('config.py', '--work-dir', 'skipped', *options, cwd=tmp_path)
    assert 'another image is taken instead' in succeeded(result) + result.stderr


def test_a_config_without_them_trains_as_mmengine_would(trained):
    (trained / 'plain.py').write_text(
        "_base_ = 'config.py'\nrunner_type = 'Runner'\ntrain_cfg = dict(type='EpochBasedTrainLoop')\n"
        "default_hooks = dict(_delete_=True, logger=dict(type='LoggerHook'))\n"
    )
    output = succeeded(tool('train', 'plain.py', '--work-dir', 'plain', cwd=trained))
    assert 'Checkpoint: ' in output and (trained / 'plain' / 'epoch_3.pth').is_file()
    hooks = next((trained / 'plain').glob('*/*.log')).read_text().split('Hooks will be executed', 1)[1]
    hooks = hooks.split('Epoch(train)', 1)[0]
    assert 'CheckpointHook' in hooks
    assert not any(name in hooks for name in ('SafeCheckpoint', 'StepSeed', 'FiniteCheck', 'TerminationHook'))
