"""Each check of the doctor by itself, over what the probe found and a machine that the test makes up."""

import json
from collections import namedtuple

import pytest
from broken_packages import NO_GPU, TORCH, distribution, healthy, write_metadata
from simulated_machine import machine_of

from shvit_det.common.dependencies import PACKAGES, fits, release
from shvit_det.doctor import __main__ as doctor
from shvit_det.doctor import machine, packages, use
from shvit_det.doctor.finding import Finding, Status
from shvit_det.doctor.probe_process import Outcome

Usage = namedtuple('Usage', 'total used free')
GIB = 2**30
NUMPY = next(package.tested for package in PACKAGES if package.name == 'numpy')
OPEN_MODULE = 'NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (builder@host)  Wed May  7'
MODULE = 'NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Sep 17 00:00:00 UTC 2024\nGCC version:  gcc 12.3.0'


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Make the distributions in a folder all that are installed."""
    folder = tmp_path / 'site'
    folder.mkdir()
    monkeypatch.setattr('sys.path', [str(folder)])
    return folder


def package(name: str, outcomes: dict[str, Outcome]) -> Finding:
    wanted = next(one for one in PACKAGES if one.name == name)
    (finding,) = packages.check_package(wanted, outcomes)
    return finding


@pytest.mark.parametrize(
    'version, wanted, expected',
    [
        ('2.2.0', '>=2.0.0,<2.2', False),
        ('2.1.99', '>=2.0.0,<2.2', True),
        ('2.0.0', '>=2.0.0,<2.2', True),
        ('2.0', '>=2.0.0', True),
        ('1.26.4', '>=2.0', False),
        ('0.9', '>=0.21', False),
        ('2.11.0+cu130', '>=2.6', True),
        ('2.7.0a0+ecf3bae40a.nv25.02', '>=2.6', True),
        ('82.0.1', '>=68,<82', False),
    ],
)
def test_ranges(version, wanted, expected):
    assert fits(version, wanted) is expected


def test_ranges_of_another_kind_are_refused():
    assert release('none') == ()
    with pytest.raises(ValueError, match='~=2'):
        fits('2.0', '~=2')


def test_python_outside_the_range(monkeypatch):
    monkeypatch.setattr('platform.python_version', lambda: '3.9.2')
    (finding,) = packages.check_python({})
    assert finding.status is Status.FAIL and finding.found == '3.9.2, wanted >=3.10,<3.15'


@pytest.mark.parametrize(
    'module, version, command',
    [
        ('torch', '2.5.1', 'install torch==2.11.0'),
        ('torchvision', '0.20.1', 'install torch==2.11.0 torchvision'),
        ('numpy', '1.26.4', f'install {NUMPY}'),
        ('mmengine', '0.10.3', 'install mmengine==0.10.7'),
        ('mmdet', '2.28.2', 'install mmdet==3.3.0'),
        ('mmpretrain', '1.0.0', 'install mmpretrain==1.2.0'),
        ('pycocotools', '2.0.6', 'install pycocotools==2.0.11'),
    ],
)
def test_releases_outside_the_range(site, module, version, command):
    write_metadata(site, **{module: version})
    finding = package(module, healthy())
    assert finding.status is Status.FAIL and finding.found.startswith(f'{version}, wanted >=')
    assert finding.command.endswith(command)


def test_torch_and_torchvision_that_are_both_too_old_go_together(site):
    write_metadata(site, torch='2.5.1+cpu', torchvision='0.20.1+cpu')
    assert package('torchvision', healthy()).command.endswith('install torch==2.11.0 torchvision==0.26.0')


def test_mmcv_is_replaced_by_the_one_that_needs_no_compiler(site):
    distribution(site, 'mmcv', '2.2.0')
    finding = package('mmcv', healthy())
    assert finding.status is Status.FAIL
    assert 'uninstall -y mmcv &&' in finding.command and finding.command.endswith('install mmcv-lite==2.1.0')


def test_two_distributions_over_one_another(site):
    write_metadata(site)
    distribution(site, 'mmcv', '2.1.0')
    finding = package('mmcv', healthy())
    assert finding.status is Status.WARN and finding.found.startswith('mmcv 2.1.0 and mmcv-lite 2.1.0')
    assert 'uninstall -y mmcv mmcv-lite' in finding.command


def test_releases_newer_than_the_tested_are_said(site):
    write_metadata(site, torch='2.13.0')
    assert package('torch', healthy()) == Finding(Status.OK, '2.13.0 (tested: 2.11.0)')


def test_a_source_tree_on_the_path(site):
    finding = package('mmdet', healthy(mmdet=Outcome(facts={'version': '3.3.0'})))
    assert finding.status is Status.OK and finding.found.startswith('3.3.0')


def test_what_waits_for_another_package_gets_no_command(site):
    write_metadata(site, leave_out=('torch',))
    absent = Outcome("ModuleNotFoundError: No module named 'torch'", missing='torch')
    outcomes = healthy(torch=absent, mmengine=absent)
    assert package('torch', outcomes).command and not package('mmengine', outcomes).command


def test_numpy_of_another_binary_interface(site):
    write_metadata(site)
    finding = package('pycocotools', healthy(pycocotools=Outcome('ValueError: numpy.dtype size changed')))
    assert finding.status is Status.FAIL and '--no-deps --no-cache-dir pycocotools==2.0.11' in finding.command


@pytest.mark.parametrize(
    'torch, torchvision, status, reason',
    [
        ('2.11.0', '0.26.0', Status.OK, 'needs torch 2.11.0'),
        ('2.11.0+cu130', '0.26.0+cu130', Status.OK, 'needs torch 2.11.0'),
        ('2.12.0', '0.26.0', Status.FAIL, 'but it needs torch 2.11.0'),
        ('2.11.0+cpu', '0.26.0+cu130', Status.FAIL, 'two different builds'),
    ],
)
def test_torchvision_for_torch(site, torch, torchvision, status, reason):
    write_metadata(site, torch=torch, torchvision=torchvision)
    (finding,) = packages.check_torchvision(healthy())
    assert finding.status is status and reason in finding.found
    if status is Status.FAIL:
        assert f'install torch=={torch.partition("+")[0]} torchvision' in finding.command
        assert finding.command.endswith('/whl/cpu') is torch.endswith('cpu')


def test_a_mixed_family(site):
    write_metadata(site)
    distribution(site, 'onedl-mmcv', '2.3.0')
    (finding,) = packages.check_families(healthy())
    assert finding.status is Status.WARN and 'beside onedl-mmcv' in finding.found
    assert finding.command.endswith('install onedl-mmengine onedl-mmcv onedl-mmdetection onedl-mmpretrain')


def test_mmpretrain_broken_by_something_else(site):
    write_metadata(site)
    (finding,) = packages.check_transformers(healthy(mmpretrain_models=Outcome('ImportError: einops')))
    assert finding.status is Status.FAIL and 'mmpretrain==1.2.0' in finding.command


@pytest.mark.parametrize(
    'outcome, status, said',
    [
        (Outcome(facts={'stand_in': False, 'cuda': ''}), Status.OK, 'compiled'),
        (Outcome(facts={'stand_in': True, 'cuda': ''}), Status.OK, 'stands in'),
        (Outcome(facts={'stand_in': False, 'cuda': 'nms_impl: implementation for device cuda:0 not found'}),
         Status.FAIL, 'work on a CPU only'),
        (Outcome("ModuleNotFoundError: No module named 'mmcv._ext'"), Status.FAIL, 'mmcv._ext'),
    ],
)  # fmt: skip
def test_ops(outcome, status, said):
    (finding,) = use.check_ops(healthy(ops=outcome))
    assert finding.status is status and said in finding.found and bool(finding.command) is (status is Status.FAIL)


@pytest.mark.parametrize(
    'facts, said',
    [
        (dict(instruction_set='avx2', reason=''), 'for avx2'),
        (dict(instruction_set='', reason='none were compiled'), 'deployed models use oneDNN: none were compiled'),
    ],
)
def test_kernels(facts, said):
    (finding,) = use.check_kernels(healthy(kernels=Outcome(facts=facts)))
    assert finding.status is Status.OK and said in finding.found and not finding.command


def test_checkpoints_that_do_not_load():
    (finding,) = doctor.CHECKS['resuming'](healthy(resume=Outcome('UnpicklingError: Weights only load failed')))
    assert finding.status is Status.FAIL and finding.command.endswith(f'install {NUMPY} mmengine==0.10.7')


def test_weights(tmp_path):
    good, bad = tmp_path / 'shvit_s1.pth', tmp_path / "shvit 's4'.pth"
    facts = {'folder': str(tmp_path), 'files': {str(good): '', str(bad): 'it is empty'}}
    wrong, right = use.check_weights(healthy(weights=Outcome(facts=facts)))
    assert (right.status, right.found) == (Status.OK, 'shvit_s1.pth')
    assert wrong.status is Status.FAIL and wrong.found.endswith('it is empty') and wrong.command.startswith("rm '")


def gpu_finding(monkeypatch, tmp_path, text: str, torch=(), found=(), devices=('nvidia0',)) -> Finding:
    driver = tmp_path / 'version'
    if text:
        driver.write_text(text)
    for name in devices:
        (tmp_path / name).touch()
    monkeypatch.setattr(machine, 'DRIVER', driver)
    monkeypatch.setattr(machine, 'DEVICES', tmp_path)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    outcomes = healthy(torch=Outcome(facts={**TORCH, **dict(torch)}), gpu=Outcome(facts={**NO_GPU, **dict(found)}))
    (finding,) = machine.check_gpu(outcomes)
    return finding


USED = dict(available=True, devices=['NVIDIA H200'] * 2, capability=[9, 0], built_for=['sm_75', 'sm_90'])
NO_KERNEL = 'CUDA error: no kernel image is available for execution on the device'


@pytest.mark.parametrize(
    'text, torch, found, status, said, command',
    [
        ('', {}, {}, Status.OK, 'no NVIDIA driver', ''),
        (MODULE.format('570.124.06'), {}, {}, Status.FAIL, 'too old for CUDA 13.0, which needs 580.65.06', 'cu126'),
        (OPEN_MODULE.format('470.57.02'), {'cuda': '12.8'}, {}, Status.FAIL, 'driver 470.57.02 is too old', 'apt-get'),
        (MODULE.format('580.65.06'), {'cuda': None}, {}, Status.WARN, 'has no CUDA', 'cu130'),
        (MODULE.format('550.54'), {'cuda': None}, {}, Status.WARN, 'has no CUDA', 'cu126'),
        (OPEN_MODULE.format('580.95.05'), {}, {'said': 'unknown error'}, Status.FAIL, 'unknown error', 'modprobe'),
        (OPEN_MODULE.format('580.95.05'), {}, USED, Status.OK, '2 x NVIDIA H200, CUDA 13.0, driver 580.95.05', ''),
        (MODULE.format('580.95.05'), {}, {**USED, 'capability': [6, 1], 'error': NO_KERNEL}, Status.FAIL, 'no kernel',
         'cu126'),
        (MODULE.format('580.95.05'), {}, {**USED, 'capability': [12, 0], 'error': NO_KERNEL}, Status.FAIL, 'no kernel',
         'cu130'),
    ],
)  # fmt: skip
def test_gpu(monkeypatch, tmp_path, text, torch, found, status, said, command):
    finding = gpu_finding(monkeypatch, tmp_path, text, torch, found)
    assert finding.status is status and said in finding.found and command in finding.command
    assert bool(finding.command) is bool(command)


def test_a_driver_whose_gpus_are_not_here(monkeypatch, tmp_path):
    finding = gpu_finding(monkeypatch, tmp_path, MODULE.format('470.57.02'), devices=())
    assert finding.status is Status.WARN and 'no device here' in finding.found


def threads(monkeypatch, tmp_path, used: int, quota: str, wanted: str | None = None) -> Finding:
    machine_of(tmp_path, monkeypatch, {'proc/self/cgroup': '0::/', 'sys/fs/cgroup/cpu.max': quota}, count=16)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    if wanted is not None:
        monkeypatch.setenv('OMP_NUM_THREADS', wanted)
    (finding,) = machine.check_threads(healthy(torch=Outcome(facts={**TORCH, 'threads': used})))
    return finding


def test_threads(monkeypatch, tmp_path):
    assert threads(monkeypatch, tmp_path, 16, 'max 100000') == Finding(Status.OK, '16 on 16 usable cores')
    many = threads(monkeypatch, tmp_path, 16, '350000 100000')
    assert many.status is Status.WARN and many.command == 'export OMP_NUM_THREADS=4'
    assert threads(monkeypatch, tmp_path, 4, '350000 100000', '4').found == '4 on 4 usable cores (OMP_NUM_THREADS=4)'
    assert threads(monkeypatch, tmp_path, 1, 'max 100000', '4,2').status is Status.OK
    for wrong in ('0', 'all', ''):
        assert threads(monkeypatch, tmp_path, 1, 'max 100000', wrong).status is Status.WARN


@pytest.mark.parametrize(
    'total, free, container, status, command',
    [
        (8 * GIB, 8 * GIB, False, Status.OK, ''),
        (64 * 2**20, 64 * 2**20, True, Status.WARN, '--shm-size'),
        (64 * 2**20, 64 * 2**20, False, Status.WARN, 'remount,size=8G'),
        (8 * GIB, 2**20, False, Status.WARN, 'ls -lS'),
    ],
)
def test_shared_memory(monkeypatch, tmp_path, total, free, container, status, command):
    monkeypatch.setattr(machine, 'SHARED_MEMORY', tmp_path)
    monkeypatch.setattr(machine, 'IN_CONTAINER', (tmp_path,) if container else ())
    monkeypatch.setattr('shutil.disk_usage', lambda folder: Usage(total, total - free, free))
    (finding,) = machine.check_shared_memory({})
    assert finding.status is status and command in finding.command


@pytest.mark.parametrize('free, status', [(20 * GIB, Status.OK), (5 * GIB, Status.WARN), (2**20, Status.FAIL)])
def test_disk(monkeypatch, free, status):
    monkeypatch.setattr('shutil.disk_usage', lambda folder: Usage(100 * GIB, 100 * GIB - free, free))
    (finding,) = machine.check_disk({})
    assert finding.status is status and ('--work-dir' in finding.command) is (status is not Status.OK)


def cache(folder: object) -> Finding:
    (finding,) = machine.check_cache(healthy(torch=Outcome(facts={**TORCH, 'cache': str(folder)})))
    return finding


def test_cache(monkeypatch, tmp_path):
    monkeypatch.setattr('shutil.disk_usage', lambda folder: Usage(100 * GIB, 0, 100 * GIB))
    assert cache(tmp_path / 'not' / 'yet').status is Status.OK
    homeless = cache('~/.cache/torch/hub')
    assert homeless.status is Status.WARN and 'TORCH_HOME' in homeless.command
    (tmp_path / 'file').touch()
    assert 'cannot be written to' in cache(tmp_path / 'file' / 'hub').found


def test_a_check_that_fails_itself_hides_no_other():
    def broken(outcomes):
        raise OSError('unforeseen')
        yield

    good = Finding(Status.OK, 'fine')
    (name, first), second = doctor.findings({}, {'bad': broken, 'good': lambda outcomes: [good]})
    assert name == 'bad' and first.status is Status.WARN and 'unforeseen' in first.found and second == ('good', good)


def test_report():
    found = [('a', Finding(Status.OK, 'fine')), ('longer', Finding(Status.WARN, 'hm', 'mend it'))]
    assert doctor.as_text(found).splitlines() == [
        'OK    a       fine',
        'WARN  longer  hm',
        '              $ mend it',
        '',
        '0 broken, 1 to be warned of.',
    ]
    assert not doctor.is_broken(found) and json.loads(doctor.as_json(found))['broken'] is False
    assert doctor.is_broken([*found, ('c', Finding(Status.FAIL, 'bad'))])
    assert doctor.as_text(found[:1]).endswith('Nothing is wrong.')


def test_all_checks_have_findings(site):
    write_metadata(site)
    assert {name for name, _ in doctor.findings(healthy())} == set(doctor.CHECKS)
