"""The first batch is tried before a run: what fails with a real image is named by its place in the config."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from paths import ROOT

from shvit_det import UsageError
from shvit_det.configuration.detector_or_classifier import task_of
from shvit_det.configuration.reading import load_config
from shvit_det.data.sample import draw_sample
from shvit_det.evaluation.evaluate import evaluate
from shvit_det.training.first_batch import try_first_batch
from shvit_det.training.train import train

CONFIGS = ROOT / 'tests' / 'data'
LOAD, BOXES = "dict(type='LoadImageFromFile')", "dict(type='LoadAnnotations', with_bbox=True)"
RESIZE, PACK = "dict(type='Resize', scale=(192, 192), keep_ratio=True)", "dict(type='PackDetInputs')"
IMAGE = 'data/sample/train2017/000000001009.jpg'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('first_batch')
    draw_sample(folder / 'data' / 'sample', num_train=8, num_val=4)
    return folder


@pytest.fixture
def place(data, monkeypatch):
    monkeypatch.chdir(data)
    return data


def written(folder: Path, lines: str, base: str = 'tiny_retinanet.py') -> str:
    (folder / 'config.py').write_text(f'_base_ = {str(CONFIGS / base)!r}\n{lines}\n')
    return str(folder / 'config.py')


def pipeline(*steps: str, split: str = 'train') -> str:
    return f'{split}_dataloader = dict(dataset=dict(pipeline=[{", ".join(steps)}]))'


STEP = 'train_dataloader.dataset.pipeline.2'
REFUSED = {
    'a transform that wants a tuple': (
        pipeline(LOAD, BOXES, "dict(type='FilterAnnotations', min_gt_bbox_wh=1)", PACK),
        f"{STEP} (FilterAnnotations), with min_gt_bbox_wh=1, fails in a trial with {IMAGE}: TypeError: 'int' object ",
    ),
    'a transform that wants two scales': (
        pipeline(LOAD, BOXES, "dict(type='RandomResize', scale=192)", PACK),
        f'{STEP} (RandomResize), with scale=192, fails in a trial with {IMAGE}: NotImplementedError: ',
    ),
    'steps in another order': (
        pipeline(RESIZE, LOAD, BOXES, PACK),
        'train_dataloader.dataset.pipeline.0 (Resize), with scale=',
    ),
    'a threshold where a list is wanted': (
        'val_evaluator = dict(iou_thrs=0.5)',
        "val_evaluator (CocoMetric), with metric='bbox', iou_thrs=0.5, fails in a trial with ",
    ),
    'no Resize before the predictions': (
        pipeline(LOAD, PACK, split='val'),
        "'scale_factor') is not None: name it in meta_keys of PackDetInputs, and have a Resize before it",
    ),
    'nothing packed': (pipeline(LOAD, BOXES), 'train_dataloader: the pipeline ends without PackDetInputs'),
    'no boxes': (pipeline(LOAD, PACK), 'since the pipeline loads no bboxes: LoadAnnotations has with_bbox'),
    'no size in the sample': (
        pipeline(LOAD, BOXES, "dict(type='PackDetInputs', meta_keys=('img_id',))"),
        "model.bbox_head (RetinaHead) fails in a trial with the first image of train_dataloader: KeyError: 'img_shape'"
        ': name it in meta_keys of PackDetInputs',
    ),
    'no size in a sample of validation': (
        pipeline(LOAD, RESIZE, "dict(type='PackDetInputs', meta_keys=('img_id', 'img_path'))", split='val'),
        "with data/sample/val2017/000000001010.jpg: KeyError: 'img_shape': name it in meta_keys of PackDetInputs",
    ),
    'gray images': (
        pipeline("dict(type='LoadImageFromFile', color_type='grayscale')", BOXES, PACK),
        'model.data_preprocessor (DetDataPreprocessor), with mean=',
    ),
    'a threshold that is a text': (
        "model = dict(train_cfg=dict(assigner=dict(pos_iou_thr='abc')))",
        "model.train_cfg.assigner (MaxIoUAssigner), with pos_iou_thr='abc', neg_iou_thr=",
    ),
    'a kind of NMS that does not exist': (
        "model = dict(test_cfg=dict(nms=dict(type='nmss')))",
        "model.bbox_head (RetinaHead), with model.test_cfg.nms.type='nmss', fails in a trial with data/sample/val2017/",
    ),
    'no settings of a test': ('model = dict(test_cfg=None)', 'model.bbox_head (RetinaHead) fails in a trial with '),
    'a score that COCO does not have': (
        "val_evaluator = dict(metric_items=['mAPP'])",
        'val_evaluator (CocoMetric)',
    ),
    'a decoder that mmcv does not have': (
        pipeline("dict(type='LoadImageFromFile', imdecode_backend='opencv')", BOXES, PACK),
        "train_dataloader.dataset.pipeline.0.imdecode_backend is 'opencv': choose from cv2, turbojpeg, ",
    ),
    'objects that are all filtered out': (
        pipeline(LOAD, BOXES, "dict(type='FilterAnnotations', min_gt_bbox_wh=(999, 999))", PACK),
        'the pipeline returned nothing for 1001 images in a row',
    ),
}


@pytest.mark.parametrize('what', REFUSED)
def test_what_fails_with_an_image_is_named_before_the_start(what, place, tmp_path):
    lines, words = REFUSED[what]
    with pytest.raises(UsageError) as caught:
        train(written(tmp_path, lines), work_dir=str(tmp_path / 'work'))
    assert words in str(caught.value) and '\n' not in str(caught.value)
    assert not (tmp_path / 'work').exists()


def test_masks_that_are_not_loaded_are_named(place, tmp_path):
    with pytest.raises(UsageError, match=r'mask_head .*FCNMaskHead.* since the pipeline loads no masks: '):
        train(written(tmp_path, pipeline(LOAD, BOXES, PACK), 'tiny_mask_rcnn.py'), work_dir=str(tmp_path / 'work'))


@pytest.mark.parametrize('splits', [('train', 'val'), ('test',)])
@pytest.mark.parametrize('base', ['tiny_retinanet.py', 'tiny_mask_rcnn.py', 'tiny_fcos.py', 'tiny_augmented.py'])
def test_what_works_passes_and_changes_nothing(base, splits, place, tmp_path):
    config, task = tried(str(CONFIGS / base))
    files = sorted(place.rglob('*'))
    model, first = task.build(config), task.check_data(config, task.build(config), splits)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    checked = config.pretty_text
    try_first_batch(task, config, model, splits, first)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert config.pretty_text == checked and sorted(place.rglob('*')) == files


def tried(path: str) -> tuple[Config, object]:
    config = load_config(path)
    config.sample_set = None
    return config, task_of(config)


@pytest.mark.parametrize(
    'base, score', [('tiny_retinanet.py', 'score_thr=0.9'), ('tiny_mask_rcnn.py', 'rcnn=dict(score_thr=0.9)')]
)
def test_an_untrained_model_predicts_something_in_the_trial(base, score, place, tmp_path):
    config, task = tried(written(tmp_path, f'model = dict(test_cfg=dict({score}))', base))
    model = task.build(config)
    found = []
    model.register_forward_hook(lambda module, inputs, outputs: found.extend(outputs))
    try_first_batch(task, config, model, ('test',), task.check_data(config, model, ('test',)))
    assert found and all(len(each.pred_instances) > 0 for each in found)


def test_large_images_are_made_smaller_for_the_model(place, tmp_path):
    larger = pipeline(LOAD, BOXES, "dict(type='Resize', scale=(2000, 2000), keep_ratio=True)", PACK)
    lines = f'{larger}\nval_dataloader = None\nval_cfg = None\nval_evaluator = None'
    config, task = tried(written(tmp_path, lines))
    model = task.build(config)
    sizes = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape)))
    try_first_batch(task, config, model, ('train',), task.check_data(config, model, ('train',)))
    assert sizes == [(2, 3, 256, 256)]


def test_an_image_that_is_too_small_then_is_tried_in_its_own_size(place, tmp_path):
    larger = pipeline(LOAD, BOXES, "dict(type='Resize', scale=(512, 512), keep_ratio=True)", PACK)
    config, task = tried(written(tmp_path, larger))
    model = task.build(config)
    sizes = []

    def refuse_small(module, inputs):
        sizes.append(inputs[0].shape[-1])
        if sizes[-1] < 512:
            raise ValueError('too small')

    model.backbone.register_forward_pre_hook(refuse_small)
    try_first_batch(task, config, model, ('train',), task.check_data(config, model, ('train',)))
    assert sizes == [256, 512]


SEMI = """
fields = ['sup', 'unsup_teacher', 'unsup_student']
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction', 'homography_matrix')
load = dict(type='LoadImageFromFile')
sup = [load, dict(type='LoadAnnotations', with_bbox=True), dict(type='RandomFlip', prob=0.5),
       dict(type='MultiBranch', branch_field=fields, sup=dict(type='PackDetInputs'))]
weak = [dict(type='RandomResize', scale=[(192, 192), (192, 192)], keep_ratio=True), dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs', meta_keys=keys)]
unsup = [load, dict(type='LoadEmptyAnnotations'),
         dict(type='MultiBranch', branch_field=fields, unsup_teacher=weak, unsup_student=weak)]
labelled = dict(type='CocoDataset', data_root='data/sample/', ann_file='annotations/instances_train2017.json',
                data_prefix=dict(img='train2017/'), metainfo=_base_.metainfo, pipeline=sup,
                filter_cfg=dict(filter_empty_gt=True))
unlabelled = dict(labelled, filter_cfg=dict(filter_empty_gt=False), pipeline=unsup)
train_dataloader = dict(
    _delete_=True, batch_size=2, num_workers=0,
    sampler=dict(type='GroupMultiSourceSampler', batch_size=2, source_ratio=[1, 1]),
    dataset=dict(type='ConcatDataset', datasets=[labelled, unlabelled]))
custom_hooks = [dict(type='MeanTeacherHook')]
val_cfg = dict(type='TeacherStudentValLoop')
model = dict(semi_train_cfg=dict(min_pseudo_bbox_wh=(1e-2, 1e-2)))
"""
BY_ITERATIONS = """
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2, val_interval=2)
param_scheduler = None
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2), logger=dict(interval=1))
log_processor = dict(by_epoch=False)
"""


def test_a_semi_supervised_detector_trains_and_is_tested(place, tmp_path):
    config = written(tmp_path, SEMI + BY_ITERATIONS, 'tiny_semi.py')
    checkpoint = train(config, work_dir=str(tmp_path / 'work'))
    assert Path(checkpoint).name == 'iter_2.pth'
    evaluate(config, str(checkpoint), work_dir=str(tmp_path / 'test'))


def test_the_data_of_a_semi_supervised_detector_are_tried(place, tmp_path):
    lines = SEMI.replace("sup=dict(type='PackDetInputs')", "sup=dict(type='PackDetInputs', meta_keys=('img_id',))")
    with pytest.raises(UsageError, match="KeyError: 'img_shape': name it in meta_keys"):
        train(written(tmp_path, lines + BY_ITERATIONS, 'tiny_semi.py'), work_dir=str(tmp_path / 'work'))


@pytest.mark.parametrize('base, lines', [
    ('tiny_semi.py', SEMI),
    ('tiny_retinanet.py', "train_dataloader = dict(sampler=dict(type='InfiniteSampler'))"),
])  # fmt: skip
def test_an_epoch_that_never_ends_is_refused(base, lines, place, tmp_path):
    with pytest.raises(UsageError, match=r'train_dataloader\.sampler is .*, with which an epoch never ends'):
        train(written(tmp_path, lines, base), work_dir=str(tmp_path / 'work'))


def test_losses_of_validation_images_are_tried_too(place):
    hook = "custom_hooks = [dict(type='ValidationLossHook')]\n"
    config = written(place, hook + pipeline(LOAD, RESIZE, BOXES, PACK, split='val'), 'tiny_mask_rcnn.py')
    with pytest.raises(UsageError, match=r'loads no masks: LoadAnnotations has .*: train without --val-loss$'):
        train(config, work_dir='with_losses')
    assert not Path('with_losses').exists()


def test_recalls_of_proposals_are_measured_with_todays_numpy(place, tmp_path):
    config = written(tmp_path, 'train_cfg = dict(max_epochs=1)', 'tiny_mask_rcnn.py')
    checkpoint = train(config, work_dir=str(tmp_path / 'work'))
    scores = evaluate(config, str(checkpoint), metrics=['proposal_fast'], work_dir=str(tmp_path / 'test'))
    assert 0 <= scores['coco/AR@100'] <= scores['coco/AR@1000'] <= 1
