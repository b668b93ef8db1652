"""Several processes: how they find each other, what they compute together, and how they end."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from checkpoint_files import TINY
from mmengine.config import Config
from mmengine.registry import DefaultScope
from paths import ROOT
from processes import Result, together
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from shvit_det import SHViT, UsageError
from shvit_det.configuration.changing import set_data_root
from shvit_det.configuration.detection import Detection
from shvit_det.configuration.reading import load_config
from shvit_det.data.sample import draw_sample
from shvit_det.training.launchers import find_launcher, first_host, port_of_job
from shvit_det.training.resuming import last_checkpoint
from shvit_det.training.runner import SHViTRunner
from shvit_det.training.seeding import seed_everything, with_seeded_samples

pytestmark = pytest.mark.slow

SLURM = dict(
    SLURM_JOB_ID='4711',
    SLURM_NTASKS='4',
    SLURM_PROCID='3',
    SLURM_LOCALID='1',
    SLURM_NODELIST='gpu[07-08]',
)
STEP = dict(SLURM, SLURM_STEP_NUM_TASKS='4', SLURM_STEP_NODELIST='gpu[07-08]')
TORCH = dict(RANK='1', WORLD_SIZE='2', MASTER_ADDR='a', MASTER_PORT='29400')
MPI = dict(
    OMPI_COMM_WORLD_SIZE='2',
    OMPI_COMM_WORLD_RANK='1',
    OMPI_COMM_WORLD_LOCAL_RANK='1',
    OMPI_COMM_WORLD_LOCAL_SIZE='2',
)


@pytest.mark.parametrize(
    'environment, found',
    [
        ({}, {}),
        (SLURM, {}),  # the script of a batch job, which is one process
        (dict(STEP, SLURM_STEP_NUM_TASKS='1'), {}),
        (dict(TORCH, WORLD_SIZE='1'), {}),
        (STEP, dict(RANK='3', WORLD_SIZE='4', LOCAL_RANK='1', MASTER_ADDR='gpu07', MASTER_PORT='24711')),
        (dict(STEP, MASTER_PORT='1234'), dict(MASTER_PORT='1234', RANK='3')),
        (TORCH, dict(TORCH, LOCAL_RANK='0')),
        (dict(TORCH, TORCHELASTIC_RUN_ID='x', WORLD_SIZE='1'), dict(WORLD_SIZE='1')),
        (dict(STEP, **TORCH, LOCAL_RANK='5'), dict(TORCH, LOCAL_RANK='5')),  # torchrun within a step
        (MPI, dict(RANK='1', WORLD_SIZE='2', LOCAL_RANK='1', MASTER_ADDR='127.0.0.1', MASTER_PORT='29500')),
    ],
)
def test_the_launcher_is_found_in_the_environment(environment, found):
    settled = dict(environment)
    assert find_launcher(None, settled) == ('pytorch' if found else 'none')
    assert found.items() <= settled.items()
    if not found:
        assert settled == environment


def test_a_launcher_can_be_named():
    assert find_launcher('none', dict(TORCH)) == 'none'
    settled = dict(SLURM)
    assert find_launcher('slurm', settled) == 'pytorch' and settled['WORLD_SIZE'] == '4'
    with pytest.raises(UsageError, match='--launcher pytorch needs WORLD_SIZE, RANK, MASTER_ADDR'):
        find_launcher('pytorch', {})
    with pytest.raises(UsageError, match='--launcher slurm needs'):
        find_launcher('slurm', {})


@pytest.mark.parametrize(
    'nodes, host',
    [
        ('gpu07', 'gpu07'),
        ('gpu07,gpu09', 'gpu07'),
        ('gpu[07-08,11]', 'gpu07'),
        ('gpu[3,5-9],login', 'gpu3'),
        ('rack1-[004-006]-ib', 'rack1-004-ib'),
        ('a-b.example.org', 'a-b.example.org'),
    ],
)
def test_the_first_host_of_a_list(nodes, host):
    assert first_host(nodes) == host


def test_ports_are_of_the_job():
    assert port_of_job('4711') == 24711 and 20000 <= port_of_job('123456789') < 30000
    assert port_of_job('') == 29500


def free_port() -> int:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def _process(rank: int, port: int, work: Callable, arguments: tuple, answers) -> None:
    torch.set_num_threads(1)
    store = distributed.TCPStore('127.0.0.1', port, 2, rank == 0)
    distributed.init_process_group('gloo', store=store, rank=rank, world_size=2, timeout=timedelta(minutes=5))
    answers.put((rank, work(rank, *arguments)))
    distributed.barrier()
    distributed.destroy_process_group()


def in_two_processes(work: Callable, *arguments: object) -> list:
    """Run a function of the rank in two processes with a process group and return what each gave."""
    context = multiprocessing.get_context('fork')
    answers, port = context.Queue(), free_port()
    processes = [context.Process(target=_process, args=(rank, port, work, arguments, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    return [found[rank] for rank in range(2)]


class Summed(nn.Module):
    """A backbone with a layer that always learns after it."""

    def __init__(self, backbone: SHViT) -> None:
        super().__init__()
        self.backbone = backbone
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * sum(level.square().mean() for level in self.backbone(x))


COMBINATIONS = [
    (out_indices, frozen_stages)
    for out_indices in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
    for frozen_stages in range(-1, max(out_indices) + 2)
]


def train_all(rank: int) -> list[str]:
    """Take three steps with every combination; return those that failed."""
    failed = []
    for out_indices, frozen_stages in COMBINATIONS:
        torch.manual_seed(0)
        model = Summed(SHViT(TINY, out_indices=out_indices, frozen_stages=frozen_stages)).train()
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
        try:
            for _ in range(3):
                wrapped.zero_grad()
                wrapped(torch.rand(2, 3, 64, 64)).backward()
            missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        except RuntimeError as error:
            missing = [str(error)[:200]]
        if missing:
            failed.append(f'{out_indices} {frozen_stages}: {missing}')
    return failed


def test_every_parameter_that_learns_is_used():
    assert in_two_processes(train_all) == [[], []]


# Whole detectors on the sample set.

DATA = ROOT / 'tests' / 'data'
Gradients = dict[str, torch.Tensor]


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    root = tmp_path_factory.mktemp('launching') / 'sample'
    draw_sample(root, num_train=8, num_val=5, image_size=128)
    return root


def config_of(name: str, sample: Path) -> Config:
    config = load_config(str(DATA / name), {'model.backbone.norm_eval': True})
    set_data_root(config, str(sample))
    return config


def model_of(config: Config) -> nn.Module:
    torch.manual_seed(0)
    return Detection().build(config).train()


def batches_of(config: Config, batch_size: int) -> list[dict]:
    """Return the first epoch's batches of this process."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        loader = SHViTRunner.build_dataloader(dict(config.train_dataloader, batch_size=batch_size), seed=0)
        return list(with_seeded_samples(loader, 0))


def gradients_of(model: nn.Module, batch: dict, seed: int = 0) -> Gradients:
    """Return the gradients of one step; the samplers of boxes draw from ``seed``."""
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    seed_everything(seed)
    plain.zero_grad()
    data = plain.data_preprocessor(batch, True)
    plain.parse_losses(model(**data, mode='loss'))[0].backward()
    return {name: p.grad.clone() for name, p in plain.named_parameters() if p.grad is not None}


def gradients_in_a_process(rank: int, name: str, sample: Path, seeds: list[int]) -> tuple[list[str], dict]:
    config = config_of(name, sample)
    batch = batches_of(config, 2)[0]
    model = DistributedDataParallel(model_of(config), broadcast_buffers=False)
    images = [data_sample.img_path for data_sample in batch['data_samples']]
    gradients = gradients_of(model, batch, seeds[rank])
    return images, {name: value.numpy() for name, value in gradients.items()}


def assert_same_gradients(found: dict, expected: Gradients) -> None:
    assert set(found) == set(expected)
    largest = max(value.abs().max().item() for value in expected.values())
    assert largest > 0.01
    for name, value in expected.items():
        torch.testing.assert_close(torch.from_numpy(found[name]), value, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_two_processes_have_the_gradients_of_one_with_twice_the_batch(sample):
    """Exactly so where the losses are divided by the number of objects in all processes, as FCOS and ATSS do."""
    answers = in_two_processes(gradients_in_a_process, 'tiny_fcos.py', sample, [0, 0])
    config = config_of('tiny_fcos.py', sample)
    batch = batches_of(config, 4)[0]
    expected = gradients_of(model_of(config), batch)
    images = [data_sample.img_path for data_sample in batch['data_samples']]
    assert sorted(answers[0][0] + answers[1][0]) == sorted(images) and len(set(images)) == 4
    for _, found in answers:
        assert_same_gradients(found, expected)


@pytest.mark.parametrize('name', ['tiny_retinanet.py', 'tiny_mask_rcnn.py'])
def test_two_processes_have_the_mean_of_the_gradients_of_each(name, sample):
    """mmdet divides these losses by the boxes of a process alone, as in the authors' training."""
    answers = in_two_processes(gradients_in_a_process, name, sample, [1, 2])
    config = config_of(name, sample)
    model = model_of(config)
    images = [path for paths, _ in answers for path in paths]
    singles = {batch['data_samples'][0].img_path: batch for batch in batches_of(config, 1)}
    halves = []
    for paths, seed in ((images[:2], 1), (images[2:], 2)):
        parts = [singles[path] for path in paths]
        batch = {key: [part[key][0] for part in parts] for key in parts[0]}
        halves.append(gradients_of(model, batch, seed))
    expected = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
    for _, found in answers:
        assert_same_gradients(found, expected)


def test_an_evaluation_does_not_depend_on_the_number_of_processes(sample, tmp_path):
    """Of five images, which two processes cannot share evenly."""
    config = DATA / 'tiny_mask_rcnn.py'
    torch.save(dict(state_dict=model_of(config_of(config.name, sample)).state_dict()), tmp_path / 'weights.pth')
    found = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        options = ('--data-root', sample, '--out', 'out.pkl', '--work-dir', 'test')
        for running in together('test', config, tmp_path / 'weights.pth', *options, cwd=folder, count=count):
            result = running.finish()
            assert result.returncode == 0, result.stderr[-3000:]
        predictions = pickle.loads((folder / 'out.pkl').read_bytes())
        (scores,) = (folder / 'test').glob('*/*.json')
        found.append((predictions, json.loads(scores.read_text())))
    (one, one_scores), (two, two_scores) = found
    assert [prediction['img_id'] for prediction in one] == [prediction['img_id'] for prediction in two]
    assert len(one) == 5 and any(len(prediction['pred_instances']['scores']) for prediction in one)
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(a['pred_instances'][key], b['pred_instances'][key]) for key in ('bboxes', 'scores'))
    names = [name for name in one_scores if name.startswith('coco/')]
    assert len(names) == 12 and all(one_scores[name] == two_scores[name] for name in names)


def test_one_process_writes_the_scores_of_a_test(sample, tmp_path):
    """Each process has a work dir of its own here, which shows who writes what."""
    tiny = DATA / 'tiny_mask_rcnn.py'
    (tmp_path / 'config.py').write_text(f"_base_ = {str(tiny)!r}\nwork_dir = '{{{{$RANK:0}}}}'\n")
    torch.save(dict(state_dict=model_of(config_of(tiny.name, sample)).state_dict()), tmp_path / 'weights.pth')
    for running in together('test', 'config.py', 'weights.pth', '--data-root', sample, cwd=tmp_path):
        result = running.finish()
        assert result.returncode == 0, result.stderr[-3000:]
    assert [path.relative_to(tmp_path).parts[0] for path in tmp_path.glob('*/*/*.json')] == ['0']


LONG = ('--cfg-options', 'train_cfg.max_epochs=1000', 'train_cfg.val_interval=1000')


def test_processes_end_when_one_of_them_dies(sample, tmp_path):
    config = DATA / 'tiny_retinanet.py'
    first, second = together('train', config, '--data-root', sample, '--work-dir', 'run', *LONG, cwd=tmp_path)
    first.wait_for(lambda: last_checkpoint(tmp_path / 'run'))
    second.signal(signal.SIGKILL)
    assert first.finish(60).returncode not in (0, None)
    assert second.finish(60).returncode == -signal.SIGKILL
    assert last_checkpoint(tmp_path / 'run') is not None


@pytest.mark.parametrize('told', [[0, 1], [1]])
def test_processes_that_are_told_to_end_save_once_together(told, sample, tmp_path):
    """All of them, as by slurm and torchrun, or one."""
    config = DATA / 'tiny_retinanet.py'
    arguments = (config, '--data-root', sample, '--work-dir', 'run', '--seed', '1', *LONG)
    processes = together('train', *arguments, cwd=tmp_path)
    processes[0].wait_for(lambda: last_checkpoint(tmp_path / 'run'))
    for rank in told:
        processes[rank].signal(signal.SIGTERM)
    assert [process.finish().returncode for process in processes] == [143, 143]
    last = last_checkpoint(tmp_path / 'run')
    assert last is not None and not list((tmp_path / 'run').glob('*.part'))
    meta = torch.load(last, weights_only=False)['meta']
    assert meta['iter'] == meta['epoch'] * 2 + meta.get('batch', 0)


HOOK = """
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Stumble(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if get_rank() == 1 and runner.iter == 1:
            raise RuntimeError('the disk of this machine is on fire')
"""


def torchrun(*options: object) -> list[str]:
    local = ('--local-addr', '127.0.0.1')  # otherwise the name of the machine, which not every network resolves
    return [sys.executable, '-m', 'torch.distributed.run', *map(str, (*local, *options))]


def test_a_test_by_two_processes_draws_every_image_or_refuses_them_all(sample, tmp_path):
    config = load_config(str(DATA / 'tiny_retinanet.py'))
    torch.save(dict(state_dict=Detection().build(config).state_dict()), tmp_path / 'a.pth')
    data = shutil.copytree(sample, tmp_path / 'data')
    images = sorted((data / 'val2017').iterdir())

    def tested(work_dir: str) -> list[Result]:
        options = ['a.pth', '--data-root', 'data', '--work-dir', work_dir, '--show-dir', f'{work_dir}/shown']
        options += ['--cfg-options', 'bad_data=skip']
        processes = together('test', DATA / 'tiny_retinanet.py', *options, cwd=tmp_path)
        return [process.finish() for process in processes]

    assert [result.returncode for result in tested('drawn')] == [0, 0]
    shown = [path.name for path in sorted((tmp_path / 'drawn' / 'shown').iterdir())]
    assert shown == [image.name for image in images]
    for image in images:
        image.write_bytes(b'<html>')
    results = tested('refused')
    assert all(result.returncode == 2 for result in results), results
    assert 'error: not one of the 5 images can be used' in results[0].stderr
    assert not (tmp_path / 'refused').exists()


def test_the_error_that_came_first_is_on_top(sample, tmp_path):
    (tmp_path / 'stumble.py').write_text(HOOK)
    (tmp_path / 'config.py').write_text(
        f'_base_ = {str(DATA / "tiny_retinanet.py")!r}\n'
        "custom_imports = dict(imports=['shvit_det', 'stumble'])\n"
        "custom_hooks = [dict(type='Stumble')]\n"
    )
    command = torchrun('--standalone', '--nproc-per-node', 2, ROOT / 'tools' / 'train.py', 'config.py')
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get('PYTHONPATH')])])
    result = subprocess.run(
        [*command, '--data-root', str(sample)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=dict(os.environ, PYTHONPATH=paths),
    )
    assert result.returncode != 0
    summary = result.stderr[result.stderr.rindex('Root Cause') :]
    assert 'rank      : 1' in summary and 'the disk of this machine is on fire' in summary
