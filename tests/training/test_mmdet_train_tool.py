"""mmdet's own ``tools/train.py`` with our configs: the config alone brings the runner, the loop and the hooks."""

import signal
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from processes import tool
from tool_runs import RETINANET, succeeded

from shvit_det.checkpoint.reading import read_content
from shvit_det.training.resuming import last_checkpoint

pytestmark = pytest.mark.slow

# What mmdet's script does, since the script itself is not in every installation of mmdet.
SCRIPT = """
import sys
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

config = Config.fromfile(sys.argv[1])
config.work_dir = sys.argv[2]
config.resume = sys.argv[3:] == ['--resume']
runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
runner.train()
"""
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


def run(script: Path | str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def train_as_mmdet(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    (folder / 'script.py').write_text(SCRIPT)
    return run('script.py', *arguments, cwd=folder)


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """A folder with a run of our tool, of three epochs."""
    folder = tmp_path_factory.mktemp('mmdet_train')
    (folder / 'config.py').write_text(f'_base_ = {str(RETINANET)!r}\n{SEED}\ntrain_cfg = dict(max_epochs=3)\n')
    succeeded(tool('train', 'config.py', '--work-dir', 'ours', cwd=folder))
    return folder


def assert_same_end(one: Path, other: Path) -> None:
    first, second = (read_content(last_checkpoint(folder)) for folder in (one, other))
    assert first['meta']['epoch'] == second['meta']['epoch'] == 3
    torch.testing.assert_close(first['state_dict'], second['state_dict'], rtol=0, atol=0)


def test_it_trains_what_our_tool_trains(trained):
    script = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'train.py'
    if script.is_file():
        result = run(script, 'config.py', '--work-dir', 'theirs', cwd=trained)
    else:
        result = train_as_mmdet(trained, 'config.py', 'theirs')
    assert result.returncode == 0, result.stderr[-3000:]
    assert_same_end(trained / 'ours', trained / 'theirs')


def test_a_signal_ends_it_and_it_goes_on_where_it_was(trained):
    (trained / 'signal_hook.py').write_text(SIGNAL)
    (trained / 'signalled.py').write_text(
        "_base_ = 'config.py'\ncustom_imports = dict(imports=['shvit_det', 'signal_hook'])\n"
        "custom_hooks = [dict(type='SignalHook')]\n"
    )
    result = train_as_mmdet(trained, 'signalled.py', 'ended')
    assert result.returncode == 128 + signal.SIGTERM and 'Traceback' not in result.stderr, result.stderr[-3000:]
    last = last_checkpoint(trained / 'ended')
    assert last.name == 'interrupted.pth' and read_content(last)['meta']['iter'] == 5
    result = train_as_mmdet(trained, 'config.py', 'ended', '--resume')
    assert result.returncode == 0, result.stderr[-3000:]
    assert_same_end(trained / 'ours', trained / 'ended')


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
