"""Every config loads, builds, and says the same as the code and the paper."""

import pytest
import torch
from line_model import HOOKS
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine import fileio
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from paths import ROOT

from shvit_det import ARCHS
from shvit_det.configuration.detector_or_classifier import task_of

CONFIGS = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
IMAGENET = [name for name in CONFIGS if name.endswith('_imagenet')]
DETECTORS = [name for name in CONFIGS if 'shvit' in name and name not in IMAGENET]
COCO = [name for name in CONFIGS if name.endswith('_coco')]


def load(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / f'{name}.py')


def test_all_configs_of_the_readme_are_there():
    assert set(CONFIGS) == {
        *(f'{head}_shvit_s{i}_coco' for head in ('mask_rcnn', 'retinanet') for i in (1, 2, 3, 4)),
        *(f'{head}_shvit_s1_sample' for head in ('mask_rcnn', 'retinanet')),
        *(f'shvit_s{i}_imagenet' for i in (1, 2, 3, 4)),
        *(f'mask_rcnn_{backbone}_nuclei' for backbone in ('shvit_s1', 'r50')),
    }


@pytest.mark.slow
@pytest.mark.parametrize('name', DETECTORS)
def test_it_builds_with_numbers_that_agree(name):
    register_all_modules()
    config = load(name)
    variant = name.split('_')[-2]
    detector = MODELS.build(config.model)
    assert detector.backbone.arch == ARCHS[variant]
    assert detector.neck.in_channels == ARCHS[variant].embed_dims
    assert detector.neck.out_strides((16, 32, 64)) == ((4, 8, 16, 32, 64) if 'mask' in name else (8, 16, 32, 64, 128))
    assert config.test_evaluator.metric == (['bbox', 'segm'] if 'mask' in name else 'bbox')
    assert config.val_evaluator == config.test_evaluator


def test_the_table_of_variants_agrees_with_the_code_and_the_metafile():
    variants = load('_base_/shvit_variants').variants
    models = fileio.load(ROOT / 'configs' / 'metafile.yml')['Models']
    published = {model['Name']: model.get('Weights') for model in models}
    assert set(variants) == set(ARCHS)
    for name, variant in variants.items():
        assert tuple(variant.channels) == tuple(ARCHS[name].embed_dims)
        assert variant.weights == published[f'shvit_{name}_imagenet']
        assert load(f'mask_rcnn_shvit_{name}_coco').model.backbone.init_cfg.checkpoint == variant.weights


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_names_the_runner_the_loop_and_the_hooks(name):
    config = load(name)
    assert (config.runner_type, config.train_cfg.type) == ('SHViTRunner', 'ResumableEpochLoop')
    assert {key: config.default_hooks[key].type for key in HOOKS} == {key: hook['type'] for key, hook in HOOKS.items()}


@pytest.mark.parametrize('name', COCO)
def test_the_recipe_is_the_authors(name):
    config = load(name)
    backbone = config.model.backbone
    assert backbone.init_cfg.type == 'SHViTPretrained'
    assert backbone.init_cfg.checkpoint.endswith(f'/v1.0/shvit_{backbone.arch}.pth')
    assert backbone.norm_eval and backbone.get('frozen_stages', -1) == -1 and backbone.get('drop_path_rate', 0) == 0
    assert {key: value for key, value in config.optim_wrapper.items() if key != '_scope_'} == dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    )
    assert config.train_cfg.max_epochs == 12
    warm_up, steps = config.param_scheduler
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (0.001, 500, False)
    assert steps.milestones == [8, 11]
    assert config.auto_scale_lr == dict(enable=False, base_batch_size=16)
    resize, flip = (next(t for t in config.train_pipeline if t.type == kind) for kind in ('Resize', 'RandomFlip'))
    assert (resize.scale, resize.keep_ratio, flip.prob) == ((1333, 800), True, 0.5)
    assert config.model.data_preprocessor.pad_size_divisor == 32
    assert config.train_dataloader.batch_size == 2


@pytest.mark.parametrize('name', CONFIGS)
def test_leaves_are_short_and_open_with_their_command(name):
    lines = (ROOT / 'configs' / f'{name}.py').read_text().splitlines()
    assert lines[0].startswith('# ') and f'tools/train.py configs/{name}.py' in lines[1]
    assert len([line for line in lines if line and not line.startswith('#')]) <= 14


def test_the_two_of_the_nuclei_differ_in_backbone_and_neck_only():
    register_all_modules()
    ours, resnet = (load(f'mask_rcnn_{backbone}_nuclei') for backbone in ('shvit_s1', 'r50'))
    built = MODELS.build(load('mask_rcnn_r50_nuclei').model)
    assert built.neck.num_outs == 5 and built.backbone.frozen_stages == -1 and not built.backbone.norm_eval
    assert all(parameter.requires_grad for parameter in built.parameters())
    assert {cfg['type'] for cfg in built.backbone.init_cfg} == {'Kaiming', 'Constant'}  # nothing is pretrained
    for config in (ours, resnet):
        kind = config.model.rpn_head.pop('type')
        assert kind == ('SHViTRPNHead' if config is ours else 'RPNHead')
        for part in ('backbone', 'neck'):
            del config.model[part]
    ours.pop('variants')
    assert ours.to_dict() == resnet.to_dict()


# Weight decay, input size and the edge that test images are resized to, of the authors' training commands.
RECIPES = {'s1': (0.025, 224, 256), 's2': (0.032, 224, 256), 's3': (0.035, 224, 256), 's4': (0.03, 256, 292)}


@pytest.mark.parametrize('name', IMAGENET)
def test_the_classifiers_build_with_numbers_that_agree(name):
    config = load(name)
    variant = name.split('_')[1]
    task = task_of(config)
    classifier = task.build(config)
    task.check_model(config, classifier, ('train', 'val', 'test'))
    assert classifier.backbone.arch == ARCHS[variant] and classifier.backbone.out_strides == (64,)
    assert classifier.head.in_channels == ARCHS[variant].embed_dims[-1] and classifier.head.num_classes == 1000
    assert classifier.data_preprocessor.num_classes == 1000
    assert (config.test_evaluator.type, config.test_evaluator.topk) == ('Accuracy', (1, 5))
    assert config.val_evaluator == config.test_evaluator


@pytest.mark.parametrize('name', IMAGENET)
def test_the_imagenet_recipe_is_the_authors(name):
    config = load(name)
    weight_decay, size, edge = RECIPES[name.split('_')[1]]
    assert config.optim_wrapper.optimizer.weight_decay == weight_decay
    assert config.train_cfg.max_epochs == 300 and config.auto_scale_lr.base_batch_size == 8 * 256
    loader = config.train_dataloader
    assert loader.batch_size == 256 and loader.drop_last and loader.sampler.type == 'RepeatAugSampler'
    train = {step.type: step for step in loader.dataset.pipeline}
    test = {step.type: step for step in config.test_dataloader.dataset.pipeline}
    assert train['RandomResizedCrop'].scale == test['CenterCrop'].crop_size == size
    assert test['ResizeEdge'].scale == edge == int(size / 0.875)
    assert test['ResizeEdge'].interpolation == train['RandomResizedCrop'].interpolation == 'bicubic'
    augment = train['RandAugment']
    assert (augment.policies, augment.num_policies) == ('timm_increasing', 2)
    assert (augment.magnitude_level, augment.total_level, augment.magnitude_std) == (9, 10, 0.5)
    erasing = train['RandomErasing']
    assert (erasing.erase_prob, erasing.mode) == (0.25, 'rand') and erasing.fill_std is not None  # noise of each pixel
    assert 'ColorJitter' not in train  # timm has none beside RandAugment
    assert config.model.train_cfg.augments == [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
    loss = config.model.head.loss
    assert (loss.type, loss.label_smooth_val, loss.mode) == ('LabelSmoothLoss', 0.1, 'original')
    assert 'drop_path_rate' not in config.model.backbone
    clipping, average = config.custom_hooks
    assert (clipping.clip_factor, 1 - average.momentum) == (0.02, pytest.approx(0.99996))


def test_the_optimizer_of_the_imagenet_recipe_is_the_authors():
    config = load('shvit_s1_imagenet')
    classifier = task_of(config).build(config)
    wrapper = build_optim_wrapper(classifier, config.optim_wrapper)
    assert type(wrapper) is OptimWrapper and type(wrapper.optimizer) is torch.optim.AdamW  # float32, nothing clipped
    groups = {id(parameter): group for group in wrapper.optimizer.param_groups for parameter in group['params']}
    for name, parameter in classifier.named_parameters():
        group = groups[id(parameter)]
        assert group['weight_decay'] == (0.025 if parameter.dim() > 1 else 0), name
        assert (group['lr'], group['betas'], group['eps']) == (4e-3, (0.9, 0.999), 1e-8)


def test_the_learning_rate_of_the_imagenet_recipe_is_the_authors():
    config = load('shvit_s1_imagenet')
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=config.optim_wrapper.optimizer.lr)
    length = 20
    schedulers = []
    for cfg in config.param_scheduler:
        scheduler = PARAM_SCHEDULERS.build(cfg, default_args=dict(optimizer=optimizer, epoch_length=length))
        schedulers.append(scheduler)
    rates = []  # of the first iteration of each epoch
    for _ in range(config.train_cfg.max_epochs):
        rates.append(optimizer.param_groups[0]['lr'])
        for _ in range(length):
            optimizer.step()
            schedulers[0].step()
        schedulers[1].step()
    assert rates[0] == pytest.approx(1e-6) and rates[5] == max(rates) == pytest.approx(4e-3)
    assert rates[:6] == sorted(rates[:6]) and rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[5 + 147] == pytest.approx((4e-3 + 1e-5) / 2, rel=0.01)  # half-way down the cosine
    assert rates[-1] == pytest.approx(1e-5, rel=0.02)
