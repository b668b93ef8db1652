"""The tools on ImageNet configs, as processes, and a classifier's way into a detector."""

import json
import pickle
import runpy
import shutil
import sys
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from checkpoint_files import official_release
from classifiers import build_classifier
from mmengine.config import Config
from paths import MASK_RCNN, ROOT
from PIL import Image
from processes import tool
from tool_runs import succeeded

from shvit_det import SHViT, load_checkpoint

pytestmark = pytest.mark.slow

TINY = ROOT / 'tests' / 'data' / 'tiny_imagenet.py'
CLASSES = [f'n{index:03d}' for index in range(6)]


def draw_imagenet(root: Path, classes: list[str], num_images: dict[str, int]) -> None:
    """Write images of 64x64, each class of its own brightness, in ImageNet's layout."""
    random = np.random.default_rng(0)
    for split, count in num_images.items():
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 40, (64, 64, 3)) + 200 * label // len(classes)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{name}_{index}.png')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder in which a tiny classifier was trained on a few drawn images, and the output of that."""
    folder = tmp_path_factory.mktemp('imagenet')
    draw_imagenet(folder / 'data' / 'imagenet', CLASSES, dict(train=4, val=2))
    output = succeeded(tool('train', TINY, '--work-dir', 'run', '--seed', 0, '--no-pretrained', cwd=folder))
    return folder, output


@pytest.fixture(scope='module')
def checkpoint(trained):
    return trained[0] / 'run' / 'epoch_2.pth'


def test_training_leaves_checkpoints_accuracy_and_curves(trained, checkpoint):
    folder, output = trained
    assert checkpoint.is_file() and (folder / 'run' / 'curves.png').read_bytes().startswith(b'\x89PNG')
    *_, header, row, last, curves = output.splitlines()
    assert header.split() == ['top-1', 'top-5'] and row.startswith('accuracy ') and row.endswith('(%)')
    assert 'epoch_2.pth' in last and 'curves.png' in curves
    assert 'paramwise_options' not in output
    first, second = json.loads((folder / 'run' / 'scores.json').read_text())['evaluations']
    assert (first['iter'], second['iter']) == (6, 12) and set(second['scores']) == {'accuracy/top1', 'accuracy/top5'}
    assert [float(cell) for cell in row.split()[1:3]] == [
        round(second['scores'][f'accuracy/top{k}'], 2) for k in (1, 5)
    ]


def test_training_goes_on_from_its_checkpoint_in_mixed_precision(trained):
    folder, _ = trained
    shutil.copytree(folder / 'run', folder / 'resumed')
    options = ('--work-dir', 'resumed', '--amp', '--auto-scale-lr', '--cfg-options', 'train_cfg.max_epochs=3')
    output = succeeded(tool('train', TINY, '--resume', *options, cwd=folder))
    assert 'Epoch(train) [3]' in output and 'Epoch(train) [2]' not in output
    state = torch.load(folder / 'resumed' / 'epoch_3.pth', weights_only=False)
    assert state['meta']['iter'] == 18 and 'ema_state_dict' in state


def test_testing_evaluates_dumps_and_draws(trained, checkpoint):
    folder, _ = trained
    places = ('--out', 'out.pkl', '--show-dir', 'pictures', '--work-dir', 'test')
    data = ('--data-root', folder / 'data' / 'imagenet')
    output = succeeded(tool('test', TINY, checkpoint, '--eval', 'accuracy', *places, *data, cwd=folder))
    assert any(line.split() == ['top-1', 'top-5'] for line in output.splitlines()[-6:])
    predictions = pickle.loads((folder / 'out.pkl').read_bytes())
    assert len(predictions) == 12 and all(len(prediction['pred_score']) == 6 for prediction in predictions)
    correct = np.mean([int(p['pred_label']) == int(p['gt_label']) for p in predictions])
    row = next(line for line in output.splitlines() if line.startswith('accuracy '))
    assert float(row.split()[1]) == pytest.approx(100 * correct, abs=0.01)
    assert len(list((folder / 'pictures').glob('n00?/n00?_?.png'))) == 12


def test_what_the_classifier_learnt_starts_a_detector_with_no_conversion(trained, checkpoint):
    folder, _ = trained
    (folder / 'detector.py').write_text(
        f'_base_ = {str(MASK_RCNN)!r}\n'
        "init = dict(_delete_=True, type='SHViTPretrained', checkpoint='run/epoch_2.pth')\n"
        'model = dict(backbone=dict(init_cfg=init))\n'
    )
    still = ('--cfg-options', 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult=0.0')
    succeeded(tool('train', 'detector.py', '--work-dir', 'detector', *still, cwd=folder))
    classifier, first, detector = (
        torch.load(path, weights_only=False)['state_dict']
        for path in (checkpoint, folder / 'detector' / 'epoch_1.pth', folder / 'detector' / 'epoch_2.pth')
    )
    backbone = SHViT(dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), attn_dims=(8, 8, 8)))
    for name, _ in backbone.named_parameters():  # at a rate of zero they stay the loaded ones
        assert torch.equal(detector[f'backbone.{name}'], classifier[f'backbone.{name}'])
    moved = [name for name in detector if not torch.equal(detector[name], first[name])]
    assert any(name.startswith('neck.') for name in moved) and any(name.startswith('roi_head.') for name in moved)
    assert any(value.any() for name, value in classifier.items() if name.endswith('ffn.m.pw2.bn.weight'))


def test_fine_tuning_with_layer_decay_runs_from_a_detector_config(trained):
    folder, _ = trained
    options = ("optim_wrapper.constructor='LayerDecayOptimWrapperConstructor'", 'train_cfg.max_epochs=1',
               'optim_wrapper.paramwise_cfg.layer_decay_rate=0.5')  # fmt: skip
    output = succeeded(tool('train', MASK_RCNN, '--work-dir', 'decay', '--cfg-options', *options, cwd=folder))
    assert 'Layer-wise learning rates: from 1.56e-05 to 0.001' in output  # 0.5 ** 6 of it in the stem


def test_the_published_classifier_is_tested_with_the_reference_logits(tmp_path):
    """The S4 config through the tool on golden-filled weights, against the classifier that has the golden logits."""
    reference = golden.load('shvit_s4')
    torch.save(official_release(golden.state_dict(reference['official_keys'])), tmp_path / 'shvit_s4.pth')
    folder = tmp_path / 'imagenet'
    (folder / 'val').mkdir(parents=True)
    (folder / 'meta').mkdir()
    pixels = (golden.uniform('pixels', 3 * 300 * 320 * 3).reshape(3, 300, 320, 3) * 255).astype(np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / 'val' / f'{index}.png')
    (folder / 'meta' / 'val.txt').write_text('0.png 65\n1.png 970\n2.png 999\n')
    config = ROOT / 'configs' / 'shvit_s4_imagenet.py'
    options = ('--eval', 'accuracy', '--data-root', folder, '--out', 'out.pkl', '--work-dir', 'work')
    workers = ('--cfg-options', 'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False')
    succeeded(tool('test', config, 'shvit_s4.pth', *options, *workers, cwd=tmp_path))
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert [int(prediction['gt_label']) for prediction in predictions] == [65, 970, 999]

    classifier = build_classifier('s4', 448, 1000).eval()
    load_checkpoint(classifier, str(tmp_path / 'shvit_s4.pth'))
    preprocessor = Config.fromfile(config).data_preprocessor
    for prediction, image in zip(predictions, pixels, strict=True):
        height, width = 292, round(292 * 320 / 300)  # the shorter edge of 300 to 292
        resized = np.asarray(Image.fromarray(image[..., ::-1]).resize((width, height), Image.BICUBIC))[..., ::-1]
        top, left = round((height - 256) / 2), round((width - 256) / 2)
        crop = torch.from_numpy(resized[top : top + 256, left : left + 256].copy()).permute(2, 0, 1).float()
        mean, std = (torch.tensor(preprocessor[key]).view(3, 1, 1) for key in ('mean', 'std'))
        with torch.no_grad():
            logits = classifier(((crop - mean) / std)[None])[0]
        torch.testing.assert_close(
            torch.as_tensor(prediction['pred_score']), logits.softmax(dim=0), rtol=1e-3, atol=1e-6
        )


# What is wrong: the tool, its arguments in terms of the fixtures, and words that the one sentence has to hold.
SIX = ('data_preprocessor.num_classes=6', 'model.head.num_classes=6')
MISTAKES = {
    'no ImageNet folder': ('train', [TINY], ['data/imagenet/train', '--data-root', 'CLASS']),
    'no such data root': ('train', [TINY, '--data-root', 'nowhere'], ['no such data folder', 'nowhere']),
    'no class folders': ('train', [TINY, '--data-root', '{flat}'], ['val has no class folders', 'meta/val.txt']),
    'empty class folders': ('train', [TINY, '--data-root', '{empty}'], ['6 class folders', 'no image', '.jpeg']),
    'other classes in the validation': ('train', [TINY, '--data-root', '{renamed}'], ['differ', 'n005', 'labels']),
    'more class folders than classes': (
        'train', [TINY, '--data-root', '{seven}'], ['7 class folders', 'num_classes is 6', 'metainfo'],
    ),
    'ImageNet classes and a head for six': (
        'train', ['{imagenet}', '--cfg-options', *SIX], ['num_classes is 6', 'train data set has 1000 classes'],
    ),
    'head and data preprocessor differ': (
        'train', [TINY, '--cfg-options', 'model.head.num_classes=9'], ['data_preprocessor.num_classes is 6', 'is 9'],
    ),
    'head and backbone differ': (
        'train', [TINY, '--cfg-options', 'model.head.in_channels=448'], ['head.in_channels is 448', '32 channels'],
    ),
    'a list with a label too many': ('test', [TINY, '{checkpoint}', '--data-root', '{listed}'], ['label 6', '0 to 5']),
    'top 9 of six': (
        'train', [TINY, '--cfg-options', 'val_evaluator.topk=(1,9)'], ['the 9 best of 6 classes', 'val_evaluator'],
    ),
    'boxes of a classifier': (
        'test', [TINY, '{checkpoint}', '--eval', 'bbox'], ["'bbox'", 'of a classifier', 'accuracy'],
    ),
    'accuracy of a detector': (
        'test', [MASK_RCNN, '{checkpoint}', '--eval', 'accuracy'], ["'accuracy'", 'of a detector', 'bbox, segm'],
    ),
    'unknown metric': ('test', [TINY, '{checkpoint}', '--eval', 'top1'], ["'top1'", 'accuracy']),
    'classwise AP of a classifier': ('test', [TINY, '{checkpoint}', '--classwise'], ['--classwise', 'CocoMetric']),
    'checkpoint of a classifier for a detector': ('test', [MASK_RCNN, '{checkpoint}'], ['another model']),
    'unknown arch': (
        'train', ['{imagenet}', '--cfg-options', 'model.backbone.arch=s9'], ['unknown arch', 's1, s2, s3, s4'],
    ),
    'fewer images than a batch': (
        'train', [TINY, '--data-root', '{data}', '--cfg-options', 'train_dataloader.batch_size=100'],
        ['24 training images', 'batch of 100', 'batch_size'],
    ),
}  # fmt: skip


@pytest.fixture(scope='module')
def places(trained, checkpoint, tmp_path_factory):
    """Paths for the placeholders in ``MISTAKES``."""
    data = trained[0] / 'data' / 'imagenet'
    made = {name: tmp_path_factory.mktemp(name) for name in ('flat', 'empty', 'renamed', 'seven', 'listed')}
    for name in ('flat', 'renamed', 'seven', 'listed'):
        shutil.copytree(data, made[name], dirs_exist_ok=True)
    shutil.rmtree(made['flat'] / 'val')
    (made['flat'] / 'val').mkdir()
    (made['flat'] / 'val' / 'ILSVRC2012_val_00000001.JPEG').touch()
    for name in CLASSES:
        (made['empty'] / 'train' / name).mkdir(parents=True)
    (made['renamed'] / 'val' / 'n005').rename(made['renamed'] / 'val' / 'n006')
    for split in ('train', 'val'):
        shutil.copytree(data / split / 'n000', made['seven'] / split / 'n006')
    (made['listed'] / 'meta').mkdir()
    (made['listed'] / 'meta' / 'val.txt').write_text('n000/n000_0.png 0\nn001/n001_0.png 6\n')
    return dict(data=data, checkpoint=checkpoint, imagenet=ROOT / 'configs' / 'shvit_s1_imagenet.py', **made)


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(mistake, places, tmp_path, monkeypatch, capsys):
    name, arguments, words = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [name, *(str(argument).format(**places) for argument in arguments)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / 'tools' / f'{name}.py'), run_name='__main__')
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert caught.value.code == 2 and sentence.startswith('error: ')
    for word in words:
        assert word in sentence
    assert list(tmp_path.iterdir()) == [] or mistake == 'fewer images than a batch'
