"""Runs whose numbers go bad, and images at the edges of what a data set may hold."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from line_model import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
from paths import MASK_RCNN
from PIL import Image
from processes import tool
from tool_runs import RETINANET, succeeded
from torch import nn

from shvit_det.common.errors import RunError
from shvit_det.configuration.type_names import dotted_name
from shvit_det.training.build_runner import name_runner
from shvit_det.training.hooks.finite_check import all_finite, image_names
from shvit_det.training.mixed_precision import LossScaleOptimWrapper
from shvit_det.training.resuming import last_checkpoint
from shvit_det.training.runner import SHViTRunner

pytestmark = pytest.mark.slow


class Sample:
    def __init__(self, number: int) -> None:
        self.img_path = f'images/{number}.jpg'


class Spoilt(BaseModel):
    """A model whose loss or gradient is spoilt in a chosen step, or in a number of them from that on."""

    def __init__(self, what: str, step: int, count: int = 1) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.what, self.spoilt, self.steps = what, range(step, step + count), 0

    def forward(self, inputs, data_samples, mode='loss'):
        self.steps += 1
        out = self.layer(inputs)
        spoilt = self.steps in self.spoilt
        losses = dict(loss_box=out.square().mean(), loss_class=out.abs().mean(), accuracy=torch.tensor(torch.nan))
        if spoilt and self.what in ('nan', 'inf'):
            losses['loss_class'] = losses['loss_class'] * float(self.what)
        if spoilt and self.what == 'gradient':
            losses['loss_box'] = losses['loss_box'] + (self.layer.weight * 0).sqrt().sum()  # 0, with slope 0/0
        return losses


def run(work_dir: Path, what: str, count=1, epochs=2, hooks=(), optimizer=None, **wrapper) -> SHViTRunner:
    def collate(numbers):
        return dict(inputs=torch.tensor(numbers)[:, None].float(), data_samples=[Sample(n) for n in numbers])

    return SHViTRunner(
        Spoilt(what, 6, count),
        str(work_dir),
        train_dataloader=dict(
            dataset=list(range(1, 9)),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=2,
            collate_fn=collate,
        ),
        train_cfg=dict(type='ResumableEpochLoop', max_epochs=epochs),
        optim_wrapper=dict(optimizer=optimizer or dict(type='SGD', lr=1e-3), **wrapper),
        default_hooks=HOOKS,
        custom_hooks=[Weights(), *hooks],
        experiment_name=work_dir.name,
    )


class Weights(Hook):
    """Notes the weights before every step."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before = {name: value.clone() for name, value in runner.model.state_dict().items()}


@pytest.mark.parametrize('clip', [False, True])
@pytest.mark.parametrize(
    'what, words',
    [
        ('nan', ['the loss is not finite: loss_class', 'loss_class nan', 'loss_box ']),
        ('inf', ['the loss is not finite: loss_class', 'loss_class inf']),
        ('gradient', ['losses are finite, but not the gradient of layer.weight']),
    ],
)
def test_a_number_gone_bad_ends_the_run_before_the_weights_change(what, words, clip, tmp_path):
    runner = run(tmp_path, what, **(dict(clip_grad=dict(max_norm=1)) if clip else {}))
    with pytest.raises(RunError) as caught:
        runner.train()
    for word in ['iteration 6: ', 'images: images/3.jpg, images/4.jpg', *words]:
        assert word in str(caught.value)
    assert runner.iter == 5 and last_checkpoint(tmp_path).name == 'epoch_1.pth'
    before = next(hook for hook in runner.hooks if isinstance(hook, Weights)).before
    assert all(torch.equal(value, before[name]) for name, value in runner.model.state_dict().items())
    assert all(value.isfinite().all() for value in before.values())


def test_steps_that_only_gather_gradients_are_looked_at_too(tmp_path):
    with pytest.raises(RunError, match='iteration 6: the loss is not finite'):
        run(tmp_path, 'nan', accumulative_counts=4).train()


class Scaled(LossScaleOptimWrapper):
    """What ``AmpOptimWrapper`` becomes on a GPU, on a CPU, for which mmengine's own start makes none."""

    def __init__(self, optimizer, loss_scale=4.0, fixed=False, clip_grad=None, accumulative_counts=1) -> None:
        super(AmpOptimWrapper, self).__init__(optimizer, clip_grad=clip_grad, accumulative_counts=accumulative_counts)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=loss_scale)
        self._scale_update_param = loss_scale if fixed else None

    def optim_context(self, model):
        return torch.autocast('cpu', dtype=torch.float16)


FUSED = [dict(type='AdamW', lr=1e-2, fused=False), dict(type='AdamW', lr=1e-2, fused=True)]


@pytest.mark.parametrize('optimizer', FUSED, ids=['plain', 'fused'])
@pytest.mark.parametrize('what', ['gradient', 'nan'])
def test_infinite_gradients_under_a_loss_scale_are_its_own_affair(what, optimizer, tmp_path):
    runner = run(tmp_path, what, type=Scaled, optimizer=optimizer)
    if what == 'nan':
        with pytest.raises(RunError, match='iteration 6: the loss is not finite: loss_class'):
            runner.train()
        return
    runner.train()
    assert runner.iter == 8 and runner.optim_wrapper.loss_scaler.get_scale() == 2.0
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())
    assert runner.optim_wrapper.optimizer.state[runner.model.layer.weight]['step'] == 7


WAYS = {
    'plain': {},
    'norms clipped': dict(clip_grad=dict(max_norm=0.01, error_if_nonfinite=True)),
    'values clipped': dict(clip_grad=dict(type='value', clip_value=0.01)),
    'units clipped': dict(hooks=[dict(type='AdaptiveGradientClippingHook', clip_factor=1.0)]),
    'gradients gathered': dict(accumulative_counts=2),
}


def trained(work_dir: Path, way: str, seed: int = 0, **options) -> SHViTRunner:
    torch.manual_seed(seed)
    runner = run(work_dir, '', **WAYS[way], **options)
    runner.train()
    return runner


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('way', WAYS)
def test_a_scaled_run_takes_the_steps_of_one_without_scale(way, fused, tmp_path):
    optimizer = dict(type='SGD', lr=1e-3, fused=fused)
    plain = trained(tmp_path / 'plain', way, optimizer=optimizer)
    scaled = trained(tmp_path / 'scaled', way, optimizer=optimizer, type=Scaled, loss_scale=64.0)
    assert scaled.optim_wrapper.loss_scaler.get_scale() == 64
    torch.testing.assert_close(scaled.model.state_dict(), plain.model.state_dict(), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize('optimizer', FUSED, ids=['plain', 'fused'])
@pytest.mark.parametrize('way', WAYS)
def test_a_scale_that_is_too_large_is_lowered_step_by_step(way, optimizer, tmp_path):
    runner = trained(tmp_path, way, optimizer=optimizer, type=Scaled, loss_scale=2.0**20, epochs=8)
    num_left_out = 20 - np.log2(runner.optim_wrapper.loss_scaler.get_scale())
    num_steps = 32 // WAYS[way].get('accumulative_counts', 1)
    state = runner.optim_wrapper.optimizer.state[runner.model.layer.weight]
    assert num_left_out > 2 and state['step'] == num_steps - num_left_out
    assert all(value.isfinite().all() for value in (*state.values(), *runner.model.state_dict().values()))
    norms = runner.message_hub.log_scalars.get('train/grad_norm')
    assert norms is None or np.isfinite(norms.data[0]).all()


@pytest.mark.parametrize('optimizer', FUSED, ids=['plain', 'fused'])
@pytest.mark.parametrize('fixed, step', [(False, 6 + 15), (True, 6 + 99)])  # 4 halved 16 times is below 1e-4
def test_gradients_that_stay_infinite_are_no_overflow(fixed, step, optimizer, tmp_path):
    with pytest.raises(RunError, match=f'iteration {step}: the losses are finite, but not the gradients') as caught:
        run(tmp_path, 'gradient', count=1000, epochs=40, type=Scaled, optimizer=optimizer, fixed=fixed).train()
    assert f'loss scale of {4 if fixed else "6.1e-05"}, {step - 5} steps in a row left out' in str(caught.value)
    assert 'images: images/' in str(caught.value)


@pytest.mark.parametrize('kind', ['AmpOptimWrapper', 'mmengine.AmpOptimWrapper', dotted_name(AmpOptimWrapper)])
def test_a_config_that_names_no_runner_gets_the_wrapper_that_clips_no_overflow(kind, monkeypatch):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    config = Config(dict(optim_wrapper=dict(type=kind, loss_scale=512.0, optimizer=dict(type='SGD', lr=0.1))))
    name_runner(config)
    wrapper = build_optim_wrapper(Spoilt('', 1), config.optim_wrapper)
    assert type(wrapper) is LossScaleOptimWrapper and wrapper._scale_update_param == 512


def test_what_counts_as_finite():
    one, bad = torch.ones(3), torch.tensor([1.0, torch.inf])
    assert all_finite({}, []) and all_finite(dict(loss=torch.ones(())), [one, one])
    assert not all_finite({}, [one, bad])
    assert not all_finite(dict(loss=torch.ones(()), loss_mask=torch.tensor(torch.nan)), [one])
    assert all_finite(dict(loss=torch.ones((), dtype=torch.float16) * 6e4, loss_box=torch.tensor(6e4)), [])


def test_the_values_that_are_logged_come_with_the_check_and_hold_no_graph():
    weight = torch.ones((), requires_grad=True)
    terms = dict(loss=3 * weight, acc=torch.tensor(0.5, dtype=torch.float64), shapes='not a number')
    assert all_finite(terms, [torch.ones(3)])
    assert (terms['loss'].item(), terms['acc'].item(), terms['shapes']) == (3, 0.5, 'not a number')
    assert not terms['loss'].requires_grad and terms['loss'].device.type == 'cpu'
    assert all_finite(dict(acc=torch.tensor(torch.nan)), [])  # no loss, so that nothing is wrong with the weights


def test_the_names_of_images_where_there_are_some():
    assert image_names(dict(data_samples=[Sample(1), object()])) == ['images/1.jpg']
    assert image_names(dict(inputs=1)) == image_names(None) == image_names([1, 2]) == []


# Whole runs of the tools.


def test_a_rate_far_too_high_ends_with_a_sentence(tmp_path):
    options = ('train_cfg.max_epochs=9', 'optim_wrapper.optimizer.lr=1e30', 'optim_wrapper.clip_grad=None')
    result = tool('train', RETINANET, '--work-dir', 'run', '--cfg-options', *options, 'param_scheduler=None',
                  cwd=tmp_path)  # fmt: skip
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith('error: iteration ') and 'train2017/' in sentence and 'loss_cls' in sentence


def data_set(root: Path, sizes: dict[tuple[int, int], int]) -> None:
    """Write images of the given widths and heights with so many square objects each, in COCO's layout.

    Those of 1000 pixels and more are for training only.
    """
    draw = np.random.default_rng(0)
    for split in ('train2017', 'val2017'):
        (root / split).mkdir(parents=True)
    (root / 'annotations').mkdir()
    images, annotations = [], []
    for number, ((width, height), count) in enumerate(sizes.items()):
        name = f'{number}.jpg'
        pixels = draw.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        for split in ('train2017', 'val2017'):
            Image.fromarray(pixels).resize((width, height)).save(root / split / name)
        images.append(dict(id=number, file_name=name, width=width, height=height))
        for _ in range(count):
            side = int(draw.integers(8, 33))
            x, y = int(draw.integers(0, width - side)), int(draw.integers(0, height - side))
            corners = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotations.append(
                dict(id=len(annotations) + 1, image_id=number, category_id=1 + len(annotations) % 5, iscrowd=0,
                     bbox=[x, y, side, side], area=side * side, segmentation=[corners])
            )  # fmt: skip
    names = ('disc', 'square', 'triangle', 'star', 'cross')
    categories = [dict(id=number, name=name) for number, name in enumerate(names, start=1)]
    # a hundred masks of the largest image would take longer than the training
    small = [image for image in images if image['width'] < 1000]
    for split, kept in (('train2017', images), ('val2017', small)):
        numbers = {image['id'] for image in kept}
        objects = [annotation for annotation in annotations if annotation['image_id'] in numbers]
        content = dict(images=kept, annotations=objects, categories=categories)
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


@pytest.mark.parametrize('config', [MASK_RCNN, RETINANET])
def test_images_without_objects_with_five_hundred_tiny_and_huge_train(config, tmp_path):
    """All as they are, without being resized, each a batch of its own, and norms fixed as in the COCO configs.

    With norms that learn, 64x64 alone leaves one value per channel at stride 64, of which no norm can be taken.
    """
    data_set(tmp_path / 'extremes', {(192, 160): 0, (640, 480): 500, (64, 64): 1, (1280, 960): 3})
    (tmp_path / 'run').mkdir()
    options = ('train_cfg.max_epochs=1', 'train_dataloader.batch_size=1', 'train_cfg.val_interval=9',
               'train_dataloader.dataset.filter_cfg=None', 'model.backbone.norm_eval=True')  # fmt: skip
    folder = tmp_path / 'run'
    output = succeeded(
        tool('train', config, '--data-root', tmp_path / 'extremes', '--cfg-options', *options, cwd=folder)
    )
    assert 'Epoch(train) [1][4/4]' in output
    (last,) = folder.glob('work_dirs/*/epoch_1.pth')
    state = torch.load(last, weights_only=False)['state_dict']
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
