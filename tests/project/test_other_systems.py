"""The package where Python lacks what only Unix has, or only Linux: as on Windows and macOS."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from processes import ROOT

pytestmark = pytest.mark.slow

LACKING = """
import errno, os, platform, re, shutil, signal, sys
import cv2, matplotlib.pyplot, mmcv, mmengine.runner, pycocotools.mask, scipy.optimize, torch, torchvision
import torch.distributed.elastic.multiprocessing.errors

ABSENT = {
    os: 'O_DIRECTORY chown fork fchmod fchown geteuid getgid getloadavg getpgid getpgrp getpriority getsid getuid '
        'killpg mkfifo nice posix_fadvise posix_fallocate pread process_cpu_count pwrite register_at_fork '
        'sched_getaffinity sched_setaffinity sendfile setpgid setsid statvfs sync sysconf uname wait waitid',
    signal: 'SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 SIGWINCH alarm '
            'pthread_kill pthread_sigmask setitimer siginterrupt sigpending sigtimedwait sigwait sigwaitinfo',
}
for module, names in ABSENT.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in ('fcntl', 'grp', 'pwd', 'resource', 'syslog', 'termios'):
    sys.modules[name] = None


def refuse(path, *args, **kwargs):
    raise PermissionError(errno.EACCES, 'Permission denied', str(path))


writable = set()


def open_no_folder(path, flags, *args, open=os.open, **kwargs):
    if os.path.isdir(path):
        refuse(path)
    handle = open(path, flags, *args, **kwargs)
    (writable.add if flags & (os.O_WRONLY | os.O_RDWR) else writable.discard)(handle)
    return handle


def synchronise_what_can_be_written(handle, fsync=os.fsync):
    if isinstance(handle, int) and handle not in writable:
        raise OSError(errno.EBADF, 'Bad file descriptor')
    fsync(handle)


platform.system = lambda: 'Windows'  # where mmengine asks
sys.modules['regex'] = re  # mmcv needs it there
# Python's own way to remove folders opens them: asked at each call, and since 3.14 when shutil is imported
shutil._use_fd_functions, shutil._rmtree_impl = False, shutil._rmtree_unsafe
os.open, os.fsync = open_no_folder, synchronise_what_can_be_written
os.link = os.symlink = refuse  # which need rights that users seldom have
"""

EVERYTHING = """
import importlib, json, pkgutil, runpy, traceback
import warnings
import shvit_det

# what Windows writes and reads without being told an encoding depends on the country
warnings.simplefilter('ignore', EncodingWarning)
warnings.filterwarnings('error', category=EncodingWarning, module='shvit_det')
OPTIONAL = ('coremltools', 'executorch', 'mmpretrain', 'onnx', 'onnxruntime', 'openvino', 'timm')

for module in pkgutil.walk_packages(shvit_det.__path__, 'shvit_det.'):
    if not module.name.endswith('__main__'):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name in OPTIONAL, error

for arguments in json.loads(os.environ['TOOLS']):
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name='__main__')
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 'traceback'
    print('ended:', os.path.basename(arguments[0]), status, flush=True)
"""


def test_everything_works_without_what_only_unix_has(tmp_path):
    """All modules are imported, and a detector is trained, resumed, tested, used and timed."""
    config = str(ROOT / 'tests' / 'data' / 'tiny_retinanet.py')
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / 'image.png')
    train = ['train', config, '--work-dir', 'run', '--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=1']
    tools = [
        [*train, 'train_cfg.max_epochs=1'],
        [*train, 'train_cfg.max_epochs=2', '--resume'],
        ['test', config, 'run/epoch_2.pth', '--show-dir', 'drawn'],
        ['predict', 'image.png', '--weights', 'run/epoch_2.pth', '--config', config, '--out', 'out'],
        ['benchmark', config, '--shape', '64', '64', '--runs', '1', '--json', 'time.json'],
        ['check_data', config, '--fix', 'fixed'],
        ['convert_checkpoint', 'run/epoch_2.pth', 'other.pth', '--to', 'ours'],
    ]
    commands = [[str(ROOT / 'tools' / f'{name}.py'), *arguments] for name, *arguments in tools]
    result = subprocess.run(
        [sys.executable, '-X', 'warn_default_encoding', '-c', LACKING + EVERYTHING],
        cwd=tmp_path,
        env=dict(os.environ, TOOLS=json.dumps(commands), SHVIT_DET_NATIVE='0'),
        capture_output=True,
        text=True,
        check=False,
    )
    ended = [line for line in result.stdout.splitlines() if line.startswith('ended:')]
    assert ended == [f'ended: {name}.py 0' for name, *_ in tools], result.stderr[-6000:]
