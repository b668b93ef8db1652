"""What users of a GPU do. Where there is none, the same tests run on the CPU, those that show something there."""

import copy
import gc
import json
import re

import pytest
import torch
from classifiers import build_classifier
from deployed_models import agree, backbone
from mmdet.utils import register_all_modules
from mmengine.config import Config
from paths import MASK_RCNN
from processes import Running, tool
from timed import TINY_RETINANET
from torch import nn

from shvit_det import Predictor, UsageError, deploy
from shvit_det.configuration.batches import synthetic_batch
from shvit_det.configuration.random_detector import build_random_detector
from shvit_det.deployment import layer_backends
from shvit_det.models import training_forms
from shvit_det.models.backbone import SHViT

ON_GPU = pytest.param(
    'cuda', marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]
)
CONFIGS = {'Mask R-CNN': str(MASK_RCNN), 'RetinaNet': TINY_RETINANET}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
everywhere = pytest.mark.parametrize('device', ['cpu', ON_GPU])
on_gpu = pytest.mark.parametrize('device', [ON_GPU])
of_both = pytest.mark.parametrize('name', list(CONFIGS))


@pytest.fixture(autouse=True)
def full_float32():
    """Products of torch's float32 proper, as on the CPU, and not of TensorFloat-32."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [each.allow_tf32 for each in backends]
    for each in backends:
        each.allow_tf32 = False
    yield
    for each, value in zip(backends, before, strict=True):
        each.allow_tf32 = value


def images(size=(2, 3, 96, 128), device='cpu', dtype=torch.float32):
    return torch.rand(size, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def detector(name, training=False):
    """A tiny detector on the CPU whose scores are spread, so that few detections are nearly alike."""
    register_all_modules()
    model = build_random_detector(Config.fromfile(CONFIGS[name]), name)
    torch.manual_seed(0)
    for key, parameter in model.named_parameters():
        if key.endswith('bias'):
            nn.init.normal_(parameter, std=0.05)
    for config in (model.test_cfg.get('rcnn'), model.test_cfg):
        if config and 'score_thr' in config:
            config.score_thr, config.max_per_img = 0.0, 20
    return model.train(training)


def predicted(model, size=1, shape=(96, 128)):
    with torch.no_grad():
        return [sample.cpu().pred_instances for sample in model.test_step(synthetic_batch(shape, size))]


def same_detections(expected, found, tolerance=1e-3):
    """Compare the detections of each image; those with nearly equal scores may be in another order."""
    for one, other in zip(expected, found, strict=True):
        assert len(one) == len(other) > 0
        torch.testing.assert_close(one.scores, other.scores, rtol=tolerance, atol=tolerance)
        near = (one.bboxes[:, None] - other.bboxes[None]).abs().amax(-1) < 1000 * tolerance
        assert (near & (one.labels[:, None] == other.labels[None])).any(1).float().mean() >= 0.9


def on_device(model, device):
    tensors = [*model.parameters(), *model.buffers()]
    return {tensor.device.type for tensor in tensors} == {device}


# The backbone


@everywhere
@pytest.mark.parametrize('dtype', list(TOLERANCE), ids=lambda each: str(each).rpartition('.')[2])
@pytest.mark.parametrize('channels_last', [False, True], ids=['NCHW', 'NHWC'])
def test_a_deployed_backbone_computes_the_same(device, dtype, channels_last):
    plain = backbone()
    with torch.no_grad():
        expected = plain(images())
        deployed = deploy(plain.to(device), dtype=dtype, channels_last=channels_last)
        found = deployed(images(device=device, dtype=dtype))
    assert all(each.device.type == device and each.dtype == dtype for each in found)
    agree(expected, [each.float().cpu() for each in found], TOLERANCE[dtype])


@everywhere
def test_a_deployed_backbone_moves_with_all_its_caches(device):
    plain = backbone()
    deployed = deploy(plain)
    with torch.no_grad():
        expected = plain(images())
        deployed(images())  # fills the caches on the CPU
        for place in (device, 'cpu', device):
            deployed.to(place)
            assert on_device(deployed, place)
            agree(expected, [each.cpu() for each in deployed(images(device=place))], 1e-4)
    kinds = set(layer_backends(deployed).values())
    assert kinds == {'plain'} if device == 'cuda' else kinds <= {'plain', 'onednn', 'kernels'}


@everywhere
def test_copies_and_files_of_a_deployed_backbone_work(device, tmp_path):
    deployed = deploy(backbone()).to(device)
    with torch.no_grad():
        expected = deployed(images(device=device))
        agree(expected, copy.deepcopy(deployed)(images(device=device)), 1e-6)
        torch.save(deployed.state_dict(), tmp_path / 'weights.pth')
        other = deploy(SHViT('s1').eval()).to(device)
        other.load_state_dict(torch.load(tmp_path / 'weights.pth', map_location='cpu', weights_only=True))
        agree(expected, other(images(device=device)), 1e-6)


@everywhere
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])
def test_autocast_over_a_plain_and_a_deployed_backbone(device, dtype):
    plain = backbone().to(device)
    with torch.no_grad():
        expected = plain(images(device=device))
        with torch.autocast(device, dtype):
            agree(expected, [each.float() for each in plain(images(device=device))], 8 * TOLERANCE[dtype])
            agree(expected, [each.float() for each in deploy(plain)(images(device=device))], TOLERANCE[dtype])


@on_gpu
def test_a_second_stream(device):
    deployed = deploy(backbone().to(device))
    batch = images(device=device)
    with torch.no_grad():
        expected = deployed(batch)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            found = deployed(batch)
        stream.synchronize()
    agree(expected, found, 1e-6)


@everywhere
def test_a_classifier(device):
    model = build_classifier('s1', 320, 7).eval()
    with torch.no_grad():
        expected = model(images((2, 3, 64, 64)))
        found = model.to(device)(images((2, 3, 64, 64), device))
    torch.testing.assert_close(expected, found.cpu(), rtol=1e-3, atol=1e-4)


@on_gpu
@pytest.mark.slow
def test_what_cuda_graphs_return_stays_as_it_is(device):
    """A compiled backbone is called twice on one size, then on two more; the first outputs are still right."""
    plain = backbone().to(device)
    compiled = deploy(plain, compile=True)
    sizes = [(1, 3, 64, 64), (1, 3, 64, 64), (1, 3, 96, 64), (1, 3, 64, 128)]
    with torch.no_grad():
        batches = [images(size, device) + number for number, size in enumerate(sizes)]
        found = [compiled(batch) for batch in batches for _ in range(3)][::3]
        for batch, outputs in zip(batches, found, strict=True):
            agree(plain(batch), outputs, 1e-3)


# Detectors


@everywhere
@of_both
def test_a_detector_finds_what_it_finds_on_the_cpu(device, name):
    model = detector(name)
    expected = predicted(model)
    same_detections(expected, predicted(model.to(device)))


@everywhere
@of_both
@pytest.mark.parametrize('moved', ['before', 'after'])
def test_a_deployed_detector_finds_the_same(device, name, moved):
    model = detector(name)
    expected = predicted(model, 2)
    deployed = deploy(model.to(device)) if moved == 'before' else deploy(model).to(device)
    assert on_device(deployed, device)
    same_detections(expected, predicted(deployed, 2))


@everywhere
@of_both
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])
def test_a_detector_deployed_in_half_precision(device, name, dtype):
    """Boxes are wide, so that areas would overflow in float16 and regions go to wrong levels."""
    model = detector(name).to(device)
    expected = predicted(model, shape=(480, 640))
    found = predicted(deploy(model, dtype=dtype), shape=(480, 640))
    for one, other in zip(expected, found, strict=True):
        assert other.bboxes.dtype == other.scores.dtype == torch.float32
        assert len(one) == len(other)
        torch.testing.assert_close(one.scores, other.scores, rtol=0.1, atol=0.02)


@on_gpu
@pytest.mark.slow
@of_both
def test_a_compiled_detector_finds_the_same(device, name):
    model = detector(name)
    expected = [predicted(model, shape=shape) for shape in ((96, 128), (128, 96))]
    compiled = deploy(model.to(device), compile=True)
    for _ in range(3):
        for shape, each in zip(((96, 128), (128, 96)), expected, strict=True):
            same_detections(each, predicted(compiled, shape=shape), 5e-3)


@everywhere
def test_autocast_over_a_deployed_detector(device):
    model = deploy(detector('Mask R-CNN').to(device))
    expected = predicted(model)
    with torch.autocast(device, torch.bfloat16):
        found = predicted(model)
    torch.testing.assert_close(expected[0].scores, found[0].scores, rtol=0.1, atol=0.02)


@on_gpu
def test_memory_does_not_grow_over_predictions(device):
    model = deploy(detector('Mask R-CNN').to(device))
    used = []
    for _ in range(20):
        predicted(model, 2)
        gc.collect()
        used.append(torch.cuda.memory_allocated())
    assert used[-1] == used[2]


@on_gpu
def test_pinned_images(device):
    model = detector('RetinaNet').to(device)
    batch = synthetic_batch((96, 128), 1)
    expected = predicted(model)
    batch['inputs'] = [image.pin_memory() for image in batch['inputs']]
    with torch.no_grad():
        same_detections(expected, [sample.cpu().pred_instances for sample in model.test_step(batch)])


@on_gpu
def test_8_bit_integers_are_refused(device):
    model = detector('Mask R-CNN').to(device)
    with pytest.raises(UsageError, match='CPU'):
        deploy(model, dtype='int8', calibration=[synthetic_batch((96, 128), 1)])


# Training


def losses_of(model, device):
    model = model.to(device).train()
    batch = model.data_preprocessor(synthetic_batch((96, 128), 2, training=True, num_classes=3), True)
    torch.manual_seed(0)
    total, terms = model.parse_losses(model(**batch, mode='loss'))
    total.backward()
    return {name: value.item() for name, value in terms.items()}


@everywhere
@pytest.mark.parametrize('forms', ['0', '1'], ids=['layer by layer', 'fused'])
def test_losses_are_those_of_the_cpu(device, forms, monkeypatch):
    """RetinaNet takes no random samples, so that its losses are the same on both."""
    monkeypatch.setattr(training_forms, 'setting', '0')
    expected = losses_of(detector('RetinaNet'), 'cpu')
    monkeypatch.setattr(training_forms, 'setting', forms)
    model = detector('RetinaNet')
    found = losses_of(model, device)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=1e-3)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() and gradient.device.type == device for gradient in gradients)


@on_gpu
def test_deterministic_algorithms_give_equal_losses(device, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        once, again = (losses_of(detector('Mask R-CNN'), device) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert once == again


def train(folder, *options, environment=None):
    done = Running(
        'train', MASK_RCNN, '--work-dir', 'run', '--seed', 0, *options, cwd=folder, environment=environment
    ).finish()
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(each) for each in re.findall(r'\bloss: ([0-9.e+-]+|nan)', done.stdout)]
    assert losses and all(0 < loss < 100 for loss in losses)
    return done.stdout


@everywhere
@pytest.mark.slow
@pytest.mark.parametrize('options', [(), ('--amp',), ('--fast',)], ids=['float32', 'amp', 'fast'])
def test_a_run(device, options, tmp_path):
    environment = dict(CUDA_VISIBLE_DEVICES='') if device == 'cpu' else {}
    output = train(tmp_path, *options, '--cfg-options', 'train_cfg.max_epochs=1', environment=environment)
    assert 'Checkpoint:' in output
    if device == 'cuda':
        assert ' memory: ' in output  # mmengine logs it on a GPU only


@on_gpu
@pytest.mark.slow
def test_a_run_in_float16_with_a_scaled_loss(device, tmp_path):
    scaled = ['optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.loss_scale=dynamic']
    train(tmp_path, '--cfg-options', *scaled)


@on_gpu
@pytest.mark.slow
def test_a_run_of_one_process_under_nccl(device, tmp_path):
    variables = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT='29531', WORLD_SIZE='1', RANK='0', LOCAL_RANK='0')
    train(tmp_path, '--launcher', 'pytorch', environment=variables)


@on_gpu
@pytest.mark.slow
def test_a_checkpoint_of_a_gpu_is_resumed_tested_and_predicted_elsewhere(device, tmp_path):
    train(tmp_path, '--cfg-options', 'train_cfg.max_epochs=1')
    train(tmp_path, '--resume')
    checkpoint = tmp_path / 'run' / 'epoch_2.pth'
    found = [Predictor(checkpoint, device=each)(images_of(tmp_path)[0]) for each in ('cpu', device)]
    torch.testing.assert_close(found[0].pred_instances.scores, found[1].pred_instances.scores, rtol=1e-2, atol=1e-3)
    done = tool('test', MASK_RCNN, checkpoint, '--eval', 'bbox', 'segm', '--deploy', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def images_of(folder):
    return sorted(folder.glob('data/sample/val*/*'))


# Memory, the timing tool


@on_gpu
@pytest.mark.slow
def test_a_lack_of_memory_is_answered_by_smaller_batches(device, tmp_path):
    train(tmp_path, '--cfg-options', 'train_cfg.max_epochs=1')
    predictor = Predictor(tmp_path / 'run' / 'epoch_1.pth', device=device, batch=64)
    pictures = [torch.zeros(1200, 1600, 3, dtype=torch.uint8).numpy()] * 64
    predictor(pictures[:1])
    torch.cuda.empty_cache()
    share = 2 * torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    try:
        assert len(predictor(pictures)) == 64 and predictor.batch < 64
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@everywhere
@pytest.mark.slow
def test_the_timing_tool(device, tmp_path):
    options = ['--shape', 96, 128, '--runs', 5, '--device', device, '--json', 'record.json']
    done = tool('benchmark', MASK_RCNN, '--against', f'deployed:{MASK_RCNN}', *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / 'record.json').read_text())
    environment = record['environment']
    assert environment['device'] == device and (environment['gpu'] is not None) == (device == 'cuda')
    if device == 'cuda':
        assert environment['gpu']['tf32'] == {'products': False, 'convolutions': True}  # torch's own settings
        assert 'own kernels' not in done.stdout
