"""Several data sets, several evaluators: what has to agree is compared, and what cannot work ends in a sentence."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from coco_files import CLASSES, coco_content, write_set
from mmengine.config import Config

from shvit_det import UsageError
from shvit_det.configuration.changing import set_data_root
from shvit_det.configuration.coco_set_checks import check_before_run, first_images
from shvit_det.configuration.coco_sets import coco_sets
from shvit_det.configuration.data_check import check_data
from shvit_det.configuration.detection import Detection, class_heads, key_of_part
from shvit_det.training.settings_check import check_settings

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')]


@pytest.fixture(scope='module')
def task():
    task = Detection()
    task.register()
    return task


def content_of(start: int = 0, letter: str = '', crowd: int = 0) -> dict:
    """Return a good annotation file whose ids begin at ``start`` and whose images have names of their own."""
    content = coco_content()
    for image in content['images']:
        image.update(id=image['id'] + start, file_name=letter + image['file_name'])
    for entry in content['annotations']:
        entry.update(id=entry['id'] + start, image_id=entry['image_id'] + start, iscrowd=crowd)
    return content


def paint(folder: Path, content: dict, shade: int) -> None:
    """Give all images contents of their own, of one size."""
    for number, image in enumerate(content['images']):
        with (folder / 'images' / image['file_name']).open('ab') as file:
            file.write(bytes([shade, number]))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Three data sets, ``train``, ``val`` and ``more``, which share no image and no image id."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(('train', 'val', 'more')):
        content = content_of(100 * number, name)
        write_set(tmp_path / 'data' / name, content)
        paint(tmp_path / 'data' / name, content, number + 1)
    return tmp_path / 'data'


def change(folder: Path, function, name: str = 'annotations.json') -> Path:
    """Write a changed annotation file beside the good one, under ``name``."""
    content = json.loads((folder / 'annotations.json').read_text())
    function(content)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def dataset(name: str, **changes) -> dict:
    return dict(
        dict(type='CocoDataset', data_root=f'data/{name}/', ann_file='annotations.json', pipeline=PIPELINE,
             data_prefix=dict(img='images/'), metainfo=dict(classes=CLASSES)),
        **changes,
    )  # fmt: skip


def metric(name: str = 'val', **changes) -> dict:
    return dict(dict(type='CocoMetric', ann_file=f'data/{name}/annotations.json', metric='bbox'), **changes)


def several(*names: str, **changes) -> dict:
    return dict(type='ConcatDataset', datasets=[dataset(name) for name in names], **changes)


def each(*names: str, **changes) -> dict:
    metrics = [metric(name) for name in names]
    return dict(dict(type='MultiDatasetsEvaluator', metrics=metrics, dataset_prefixes=[*names]), **changes)


def config_of(val=None, evaluator=None, train=None, **changes) -> Config:
    loader = dict(sampler=dict(type='DefaultSampler', shuffle=False), dataset=val or dataset('val'))
    return Config(
        dict(
            dict(
                model=dict(),
                train_dataloader=dict(dataset=train or dataset('train')),
                val_dataloader=loader,
                val_evaluator=evaluator or metric(),
                test_dataloader=loader,
                test_evaluator=evaluator or metric(),
            ),
            **changes,
        )
    )


def refused(task, config: Config, splits=('train', 'val')) -> str:
    with pytest.raises(UsageError) as caught:
        check_before_run(task, config, splits)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def found(config: Config, tmp_path: Path, **options) -> dict:
    """Return the findings of ``check_data`` by kind, and the texts of the first."""
    file = tmp_path / 'config.py'
    file.write_text(config.pretty_text)
    checked = check_data(str(file), images='headers', workers=1, **options)
    return {finding.kind: finding.message for each in checked for finding in each.findings}


def test_sets_that_agree_are_accepted(data, task, log, tmp_path):
    shutil.copy(data / 'val' / 'annotations.json', tmp_path / 'copy.json')
    for config in (
        config_of(),
        config_of(evaluator=metric(ann_file=str(data / 'val' / 'annotations.json'))),
        config_of(evaluator=metric(ann_file='copy.json')),
        config_of(several('val', 'more'), each('val', 'more')),
        config_of(evaluator=[metric(metric='segm'), metric(metric='bbox')]),
        config_of(evaluator=dict(type='Evaluator', metrics=[metric()])),
        config_of(train=several('train', 'train')),
    ):
        check_before_run(task, config, ('train', 'val'))
        assert found(config, tmp_path) == {}
    assert 'trained on' not in log.text


# What is changed in a copy of the validation file that the evaluator names, and words of the sentence.
OTHERS = {
    'half of its objects': (
        lambda content: content['annotations'].__delitem__(slice(0, 6, 2)),
        ['lacks 3 of the 6 objects of data/val/annotations.json'],
    ),
    'a box moved': (
        lambda content: content['annotations'][0].update(bbox=[5, 5, 12, 10]),
        ['lacks 1 of the 6 objects and has 1 objects that are none of'],
    ),
    'one image fewer': (
        lambda content: content.update(
            images=content['images'][1:], annotations=[a for a in content['annotations'] if a['image_id'] != 103]
        ),
        ['lacks 1 (id 103, val3.jpg) of the 4 images'],
    ),
    'one image more': (
        lambda content: content['images'].append(dict(content['images'][0], id=999, file_name='new.jpg')),
        ['has 1 images (id 999, new.jpg) that are none'],
    ),
    'other images under the same ids': (
        lambda content: [image.update(file_name=f'x{image["file_name"]}') for image in content['images']],
        ['others (id 103, xval3.jpg in place of val3.jpg) under 4 of the 4 ids'],
    ),
    'categories in another order': (
        lambda content: content['categories'].reverse(), ['another order', 'fox, dog, cat']
    ),
    'ids of two categories exchanged': (
        lambda content: [content['categories'][n].update(id=i) for n, i in ((0, 2), (1, 1))],
        ['lacks 4 of the 6 objects'],
    ),
    'another name of a category': (
        lambda content: content['categories'][0].update(name='lion'), ['1 of the 3 classes', 'cat']
    ),
    'a broken box': (lambda content: content['annotations'][0].update(bbox=[1, 2, 3]), ['1 box_invalid']),
}  # fmt: skip


@pytest.mark.parametrize('other', OTHERS)
def test_an_evaluator_with_another_file_than_the_data_set_is_compared(other, data, task, tmp_path):
    function, words = OTHERS[other]
    file = change(data / 'val', function, 'other.json')
    config = config_of(evaluator=metric(ann_file='data/val/other.json'))
    for sentence in (refused(task, config), refused(task, config, ('test',))):
        for word in (*words, 'other.json'):
            assert word in sentence
    assert any(words[0] in f'{text}, 1 {kind}' for kind, text in found(config, tmp_path).items())
    assert file.is_file()
    sets = coco_sets(task, config, ('train', 'val', 'test'))
    assert [(each.splits, each.keys) for each in sets if each.scored_only] == [
        (['val', 'test'], ['val_evaluator.ann_file', 'test_evaluator.ann_file'])
    ]


def test_masks_of_an_evaluator_are_compared_where_masks_are_scored(data, task, tmp_path):
    other = change(
        data / 'val', lambda content: content['annotations'][0].update(segmentation=[[1, 1, 9, 1, 9, 9]]), 'b.json'
    )
    as_run_lengths = dict(size=[30, 40], counts=[100, 50, 1050])
    in_another_form = change(
        data / 'val', lambda content: content['annotations'][0].update(segmentation=as_run_lengths), 'c.json'
    )
    config = config_of(evaluator=metric(metric=['bbox', 'segm'], ann_file=str(other)))
    words = 'has other masks for 1 of the 6 objects of data/val/annotations.json'
    assert words in refused(task, config) and words in found(config, tmp_path)['evaluator']
    for evaluator in (metric(ann_file=str(other)), metric(metric='segm', ann_file=str(in_another_form))):
        check_before_run(task, config_of(evaluator=evaluator), ('train', 'val'))


@pytest.mark.parametrize('changes, is_said', [
    (dict(indices=2), True), (dict(filter_cfg=dict(min_size=32)), True),
    (dict(filter_cfg=dict(min_size=32), test_mode=True), False),
])  # fmt: skip
def test_images_that_are_scored_and_not_predicted_are_said(changes, is_said, data, task, log):
    check_before_run(task, config_of(dataset('val', **changes)), ('val',))
    assert ('val_dataloader.dataset' in log.text and 'counts as missed' in log.text) == is_said


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(type='VOCDataset', ann_file='nowhere.txt'), ['val_dataloader.dataset.ann_file', 'nowhere.txt']),
        (dict(data_prefix=dict(img='images/', seg='nowhere/')), ['dataset.data_prefix.seg', 'nowhere']),
        (dict(proposal_file='nowhere.pkl'), ['dataset.proposal_file', 'data/val/nowhere.pkl']),
        (dict(data_prefix='images/'), ['dataset.data_prefix', "dict(img='images/')"]),
        (dict(data_prefix=dict(img=['images/', 'more/'])), ['dataset.data_prefix.img', 'ConcatDataset']),
        (dict(ann_file='nowhere.json'), ['no annotation file', 'nowhere.json']),
        (dict(ann_file=7), ['dataset.ann_file is 7']),
        (dict(filter_cfg=dict(min_size='32')), ["filter_cfg.min_size of a data set is '32'"]),
    ],
)
def test_every_file_that_a_data_set_names_is_looked_for(changes, words, data, task, tmp_path):
    config = config_of(dataset('val', **changes))
    sentence = refused(task, config)
    for word in words:
        assert word in sentence
    with pytest.raises(UsageError):
        found(config, tmp_path)


def test_a_list_of_images_without_objects_may_have_its_objects_elsewhere(data, task):
    """As test sets are given out, whose annotations only the evaluator knows."""
    change(data / 'val', lambda content: content.update(annotations=[]), 'images.json')
    check_before_run(task, config_of(dataset('val', ann_file='images.json')), ('val',))


@pytest.mark.parametrize(
    'evaluator, words',
    [
        (metric(ann_file='nowhere.json'), ['val_evaluator.ann_file', 'no nowhere.json', '--cfg-options']),
        (
            metric(ann_file='annotations.json'),
            ['no annotations.json', 'val_evaluator.ann_file=data/val/annotations.json'],
        ),
        ([metric(), dict(type='LVISMetric', ann_file='nowhere.json')], ['val_evaluator.1.ann_file', 'nowhere.json']),
        (dict(type='CocoPanopticMetric', seg_prefix='nowhere/'), ['val_evaluator.seg_prefix', 'nowhere/']),
        (metric(ann_file=['a.json', 'b.json']), ['val_evaluator.ann_file', 'one path', 'MultiDatasetsEvaluator']),
        ([metric(), metric()], ['val_evaluator.0 and val_evaluator.1', 'coco/bbox', 'val_evaluator.1.prefix=NAME']),
        (metric(ann_file=None), ['no ann_file', 'val_evaluator.ann_file=data/val/annotations.json', '"instances"']),
    ],
)
def test_an_evaluator_that_cannot_score_is_named_before_the_start(evaluator, words, data, task):
    sentence = refused(task, config_of(evaluator=evaluator))
    for word in words:
        assert word in sentence
    with pytest.raises(UsageError) as caught:
        found(config_of(evaluator=evaluator), data.parent)
    assert str(caught.value).replace('test_', 'val_') == sentence


def test_metrics_of_one_name_may_score_different_things(data, task):
    pipeline = [*PIPELINE[:2], dict(type='PackDetInputs', meta_keys=('img_id', 'instances'))]
    for evaluator in ([metric(), metric(prefix='again')], [metric(), dict(type='VOCMetric')], metric(ann_file=None)):
        check_before_run(task, config_of(dataset('val', pipeline=pipeline), evaluator), ('val',))


@pytest.mark.parametrize(
    'val, evaluator, words',
    [
        (several('val', 'more'), [metric('val'), metric('more')], ['same names', 'MultiDatasetsEvaluator']),
        (several('val', 'more'), [metric('val', prefix='a'), metric('more')], ['lacks 4', 'MultiDatasetsEvaluator']),
        (several('val', 'more'), metric('val'), ['val_evaluator.ann_file', 'lacks 4', 'MultiDatasetsEvaluator']),
        (several('val', 'val'), metric('val'), ['share the id 103', 'MultiDatasetsEvaluator']),
        (several('val', 'more'), each('more', 'val'), ['val_evaluator.metrics.0.ann_file', 'lacks 4 (id 103']),
        (several('val', 'more'), each('val'), ['datasets has 2', 'metrics has 1', 'dataset_prefixes has 1']),
        (several('val'), each('val', dataset_prefixes='v'), ['dataset_prefixes has 0']),
        (several('val', 'val'), each('val', dataset_prefixes=['a', 'a'], metrics=[metric()] * 2), ["'a' twice"]),
        (dataset('val'), each('val'), ['ConcatDataset', 'val_dataloader.dataset is CocoDataset']),
        (several('val', lazy_init=True), each('val'), ['without lazy_init']),
        (dict(several('val'), type='mmengine.ConcatDataset'), each('val'), ['mmdet.ConcatDataset']),
        (dict(type='RepeatDataset', times=2, dataset=dataset('val')), metric(), ['RepeatDataset', 'repeated']),
        (
            several('val') | dict(datasets=[dict(type='RepeatDataset', times=2, dataset=dataset('val'))]),
            each('val'),
            ['val_dataloader.dataset.datasets.0 is a RepeatDataset'],
        ),
        ([dataset('val'), dataset('more')], metric(), ['val_dataloader.dataset', 'one dict', 'ConcatDataset']),
        (
            dataset('val', ann_file=['a.json', 'b.json']),
            metric(),
            ['val_dataloader.dataset.ann_file', "'a.json'", 'ConcatDataset'],
        ),
    ],
)
def test_what_cannot_work_with_several_data_sets_is_said(val, evaluator, words, data, task):
    sentence = refused(task, config_of(val, evaluator))
    for word in words:
        assert word in sentence


def test_data_sets_with_the_same_ids_are_scored_each_by_itself(data, task):
    shutil.copytree(data / 'val', data / 'twin')
    check_before_run(task, config_of(several('val', 'twin'), each('val', 'twin')), ('val',))
    assert 'share the id 103' in refused(task, config_of(several('val', 'twin'), metric()))
    merged = content_of(100, 'val')
    for section in ('images', 'annotations'):
        merged[section] += content_of(200, 'more')[section]
    (data / 'merged.json').write_text(json.dumps(merged))
    check_before_run(task, config_of(several('val', 'more'), metric(ann_file='data/merged.json')), ('val',))


def test_shuffled_images_cannot_be_told_apart(data, task):
    config = config_of(several('val', 'more'), each('val', 'more'))
    for sampler in (dict(type='DefaultSampler'), dict(type='DefaultSampler', shuffle=True)):
        config.val_dataloader.sampler = sampler
        assert 'val_dataloader.sampler.shuffle=False' in refused(task, config)
    config.val_dataloader.sampler = dict(type='ClassAwareSampler')  # which knows no such argument
    check_before_run(task, config, ('val',))


# Classes.


def test_classes_of_the_splits_have_one_order(data, task, tmp_path):
    change(data / 'val', lambda content: content['categories'].reverse())
    config = config_of(dataset('val', metainfo=dict(classes=CLASSES[::-1])))
    sentence = task.class_difference(config, ('train', 'val'))
    assert "class 0 is 'cat' in the train data set and 'fox' in a val data set" in sentence
    assert found(config, tmp_path)['classes'] == sentence
    assert task.class_difference(config_of(), ('train', 'val')) is None
    joined = several('train', 'more')
    joined['datasets'][1]['metainfo'] = dict(classes=('cat', 'fox', 'dog'))
    assert "class 1 is 'dog'" in task.class_difference(config_of(train=joined), ('train',))
    assert task.class_difference(Config(dict(config, model=dict(language_model=dict()))), ('train', 'val')) is None


@pytest.mark.parametrize(
    'meta, words',
    [
        (dict(dataset_meta=dict(classes=CLASSES)), None),
        (dict(dataset_meta=dict(CLASSES=list(CLASSES))), None),
        (dict(CLASSES=CLASSES), None),
        (dict(), None),
        (dict(dataset_meta=[dict(classes=CLASSES)] * 2), None),
        (dict(dataset_meta=dict(classes=('dog', 'cat', 'fox'))), ["class 0 is 'dog' in a.pth and 'cat' in the test"]),
        (dict(CLASSES=('cat', 'dog', 'wolf')), ["class 2 is 'wolf' in a.pth", 'NEW.safetensors']),
        (dict(dataset_meta=dict(classes='cat')), ['a.pth has 1 classes and the test data set 3']),
    ],
)
def test_the_classes_of_a_checkpoint_are_compared(meta, words, data, task):
    content = dict(meta=meta, state_dict={})
    if words is None:
        task.check_checkpoint_classes(config_of(), content, 'a.pth', ('test',))
        return
    with pytest.raises(UsageError) as caught:
        task.check_checkpoint_classes(config_of(), content, 'a.pth', ('test',))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, wanted',
    [
        ('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', {
            f'roi_head.{kind}_head.{number}' for kind in ('bbox', 'mask') for number in range(3)
        }),
        ('mmdet::htc/htc_r50_fpn_1x_coco.py', {
            f'roi_head.{kind}_head.{number}' for kind in ('bbox', 'mask') for number in range(3)
        }),
        ('mmdet::yolact/yolact_r50_1xb8-55e_coco.py', {'bbox_head', 'mask_head', 'mask_head.segm_branch'}),
        ('mmdet::detr/detr_r50_8xb2-150e_coco.py', {'bbox_head'}),
        ('mmdet::rpn/rpn_r50_fpn_1x_coco.py', set()),
        ('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', {
            'roi_head.bbox_head', 'roi_head.mask_head', 'panoptic_fusion_head'
        }),
        ('mmdet::seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py', {
            'roi_head.bbox_head', 'roi_head.mask_head', 'roi_head.bbox_head.loss_cls'
        }),
    ],
)  # fmt: skip
def test_heads_are_found_by_what_they_are(name, wanted, task):
    config = Config.fromstring(f'_base_ = {name!r}', '.py')
    config.model.backbone.init_cfg = None
    assert {name for name, _ in class_heads(task.build(config))} == wanted


@pytest.mark.slow
def test_the_number_of_classes_is_compared_at_every_level(task):
    name = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'
    config = Config.fromstring(f'_base_ = {name!r}', '.py')
    config.model.backbone.init_cfg = None
    config.model.roi_head.bbox_head[2].num_classes = 7
    config.model.roi_head.mask_head.num_classes = 7
    with pytest.raises(UsageError) as caught:
        task.check_model(config, task.build(config), ('train',))
    sentence = str(caught.value)
    assert 'model.roi_head.bbox_head.2.num_classes is 7' in sentence and '80 classes' in sentence
    options = '--cfg-options model.roi_head.bbox_head.2.num_classes=80 model.roi_head.mask_head.num_classes=80'
    assert options in sentence


# Images: in two splits, or missing.


def test_images_in_two_splits_are_counted(data, task, log, tmp_path):
    for name in ('val3.jpg', 'val5.jpg'):
        shutil.copy(data / 'val' / 'images' / name, data / 'train' / 'images')
    names = {'train3.jpg': 'val3.jpg', 'train5.jpg': 'val5.jpg'}
    change(data / 'train', lambda content: [
        image.update(file_name=names.get(image['file_name'], image['file_name'])) for image in content['images']
    ])  # fmt: skip
    shutil.copy(data / 'val' / 'images' / 'val8.jpg', data / 'train' / 'images' / 'train8.jpg')  # by content only
    config = config_of()
    check_before_run(task, config, ('train', 'val'))
    assert '3 of the 4 images' in log.text and 'are trained on too' in log.text and 'val3.jpg' in log.text
    file = tmp_path / 'config.py'
    file.write_text(config.pretty_text)
    kinds = [finding.kind for each in check_data(str(file), images='headers', workers=1) for finding in each.findings]
    assert kinds == ['leaked_image'] * 3
    assert list(found(config, tmp_path)) == ['leaked_image']


def test_a_split_that_is_trained_and_evaluated_is_said(data, task, log):
    check_before_run(task, config_of(dataset('train'), metric('train')), ('train', 'val'))
    assert '4 of the 4 images' in log.text


def test_same_names_with_other_contents_are_no_leak(data, task, log):
    for name in ('train', 'val'):
        for image in (data / name / 'images').iterdir():
            image.rename(image.with_name(image.name.removeprefix(name)))
        change(data / name, lambda content, name=name: [
            image.update(file_name=image['file_name'].removeprefix(name)) for image in content['images']
        ])  # fmt: skip
    check_before_run(task, config_of(), ('train', 'val'))
    assert 'trained on' not in log.text


@pytest.mark.parametrize('splits, name', [(('test',), 'val'), (('train', 'val'), 'val'), (('train',), 'train')])
def test_a_split_without_a_single_image_is_refused_whatever_bad_data_says(splits, name, data, task, log):
    images = sorted((data / name / 'images').iterdir())
    for image in images[1:]:
        image.unlink()
    config = config_of(bad_data='skip')
    check_before_run(task, config, splits)
    assert '3 of the 4 images' in log.text and 'are missing' in log.text
    images[0].unlink()
    sentence = refused(task, config, splits)
    assert 'not one of the 4 images' in sentence and '--data-root' in sentence


@pytest.mark.parametrize('splits, name', [(('test',), 'val'), (('train', 'val'), 'val'), (('train',), 'train')])
def test_a_split_without_a_single_usable_image_is_refused_where_bad_ones_are_passed_over(splits, name, data, task, log):
    images = sorted((data / name / 'images').iterdir())
    for image in images[1:]:
        image.write_bytes(b'<html>')
    config = config_of(bad_data='skip')
    check_before_run(task, config, splits)
    images[0].write_bytes(b'')
    sentence = refused(task, config, splits)
    assert f'not one of the 4 images can be used, the first: the image data/{name}/images/{name}3.jpg' in sentence


def test_the_first_images_are_such_as_can_be_tried(data, task):
    (data / 'train' / 'images' / 'train3.jpg').unlink()
    change(data / 'train', lambda content: content['images'].insert(0, dict(content['images'][3], id=[1])))
    content = json.loads((data / 'train' / 'annotations.json').read_text())
    first = first_images(content, data / 'train' / 'images')
    assert [image['file_name'] for image in first['images']][:2] == ['train5.jpg', 'train8.jpg']
    assert {entry['image_id'] for entry in first['annotations']} == {5, 8}


# What a data set lacks: the change of the loader, and the sentence of every tool.
LACKING = {
    'a list of loaders': (lambda loader: [loader], 'val_dataloader is ['),
    'no data set': (lambda loader: dict(batch_size=1), "val_dataloader is {'batch_size': 1}, and a dict with a "),
    'no file': (lambda loader: dict(dataset=dataset('val', ann_file=None)), 'val_dataloader.dataset.ann_file is None'),
    'no folder': (
        lambda loader: dict(dataset=dataset('val', data_prefix=None)), 'val_dataloader.dataset.data_prefix is None'
    ),
    'several files': (
        lambda loader: dict(dataset=dataset('val', ann_file=['a.json', 'b.json'])),
        "val_dataloader.dataset.ann_file is ['a.json', 'b.json'], and one path is wanted",
    ),
}  # fmt: skip


@pytest.mark.parametrize('what', LACKING)
def test_a_loader_without_its_parts_is_named_alike_by_the_check_and_the_start(what, data, task, tmp_path):
    make, words = LACKING[what]
    config = config_of()
    config.val_dataloader = make(config.val_dataloader)
    with pytest.raises(UsageError) as caught:
        check_settings(config, ('train', 'val'))
    assert str(caught.value).startswith(words)
    assert refused(task, config) == str(caught.value)
    with pytest.raises(UsageError, match=re.escape(words)):
        found(config, tmp_path)


def test_heads_of_student_and_teacher_have_the_key_of_the_detector():
    config = Config(dict(model=dict(detector=dict(bbox_head=dict(num_classes=3)))))
    assert key_of_part(config, 'student.bbox_head') == 'model.detector.bbox_head.num_classes'


# The data root.


def moved(config: Config, root: Path) -> Config:
    root.mkdir()
    set_data_root(config, str(root))
    return config


@pytest.mark.parametrize('start', ['', '/old/machine/', './', os.curdir + '/elsewhere/../'])
def test_the_data_root_reaches_evaluators_however_they_name_the_file(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of(evaluator=metric(ann_file=f'{start}data/val/annotations.json'))
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.update(data_root='data/', ann_file=f'{split}/annotations.json')
    config.val_dataloader.dataset.ann_file = config.test_dataloader.dataset.ann_file = 'val/annotations.json'
    moved(config, tmp_path / 'new')
    assert config.val_evaluator.ann_file == config.test_evaluator.ann_file == f'{tmp_path}/new/val/annotations.json'
    config = config_of(evaluator=metric(ann_file=str(tmp_path / 'data' / 'gt.json')), data_root='data')
    set_data_root(config, str(tmp_path / 'new'))
    assert config.val_evaluator.ann_file == f'{tmp_path}/new/gt.json'
    assert config.val_dataloader.dataset.data_root == f'{tmp_path}/new/val/'


def test_data_sets_below_one_root_stay_apart(tmp_path):
    config = moved(config_of(data_root='data/'), tmp_path / 'new')
    assert config.train_dataloader.dataset.data_root == f'{tmp_path}/new/train/'
    assert config.val_dataloader.dataset.data_root == f'{tmp_path}/new/val/'
    assert config.val_evaluator.ann_file == f'{tmp_path}/new/val/annotations.json'
    with pytest.raises(UsageError, match=r'train_dataloader\.dataset and val_dataloader\.dataset the same file'):
        moved(config_of(), tmp_path / 'other')


# The options of the test tool.


def test_options_reach_every_metric_and_remove_what_would_be_twice(data, task):
    config = config_of(several('val', 'more'), each('val', 'more'))
    task.select_metrics(config, None, ['bbox'])
    task.set_classwise(config)
    assert [each.metric for each in config.test_evaluator.metrics] == [['bbox'], ['bbox']]
    assert all(each.classwise for each in config.test_evaluator.metrics)
    assert config.val_evaluator.metrics[0].metric == 'bbox' and 'classwise' not in config.val_evaluator.metrics[0]
    names = task.set_format_only(config, Path('work'))
    assert [str(name) for name in names] == ['work/results_val', 'work/results_more']
    prefixes = [each.outfile_prefix for each in config.test_evaluator.metrics]
    assert prefixes == ['work/results_val.part', 'work/results_more.part']

    config = config_of(evaluator=[metric(), metric(metric='segm'), dict(type='VOCMetric'), metric(prefix='b')])
    task.select_metrics(config, None, ['bbox', 'proposal'])
    assert [each.type for each in config.test_evaluator] == ['CocoMetric', 'VOCMetric', 'CocoMetric']
    check_before_run(task, config, ('test',))
    assert [str(name) for name in task.set_format_only(config, Path('work'))] == ['work/results_0', 'work/results_1']
    assert [each.type for each in config.test_evaluator] == ['CocoMetric', 'CocoMetric']
    config = config_of(evaluator=[metric(), metric(metric='segm')])
    assert task.set_format_only(config, Path('work')) == [Path('work/results')] and len(config.test_evaluator) == 1
    with pytest.raises(UsageError, match='--format-only needs a CocoMetric'):
        task.set_format_only(config_of(evaluator=dict(type='VOCMetric')), Path('work'))
    mixed = each('val', 'more', metrics=[metric(), dict(type='VOCMetric')])
    with pytest.raises(UsageError, match=r'test_evaluator\.metrics\.1'):
        task.set_format_only(config_of(several('val', 'more'), mixed), Path('work'))


def test_each_data_set_has_a_table():
    scores = {'bbox_mAP': 0.5, 'bbox_mAP_50': 0.75, 'segm_mAP': 0.25}
    metrics = {f'{name}/coco/{key}': value for name in ('a', 'b') for key, value in scores.items()}
    metrics |= {'lvis/bbox_AP': 0.125, 'lvis/bbox_APr': 0.0625, 'pascal_voc/mAP': 0.375}
    lines = Detection().table(metrics).splitlines()
    assert [line for line in lines if '/' in line and ' ' not in line] == ['a/coco', 'b/coco']
    assert lines[1].split()[:2] == ['AP', 'AP50'] and lines[2].split()[:3] == ['bbox', '0.500', '0.750']
    assert lines[3].split()[:2] == ['segm', '0.250'] and lines[8] == 'lvis'
    assert lines[9].split() == ['AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'APr', 'APc', 'APf']
    assert lines[10].split()[:2] == ['bbox', '0.125'] and lines[10].split()[7] == '0.062'
    assert lines[11] == 'pascal_voc/mAP  0.375'
    assert Detection().table({'own/bbox_mAP': 0.5}).splitlines()[1].split()[:2] == ['bbox', '0.500']
