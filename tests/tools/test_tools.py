"""The tools as a user meets them: processes with an exit status, last lines, and files."""

import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmdet.datasets import CocoDataset
from paths import MASK_RCNN, ROOT
from processes import tool
from tool_runs import RETINANET, succeeded

from shvit_det.checkpoint.convert import convert_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def trained(trained_once, tmp_path_factory):
    """A folder in which a tiny Mask R-CNN was trained on a few drawn images, and the output of that."""
    folder = tmp_path_factory.mktemp('tools') / 'trained'
    shutil.copytree(trained_once, folder)
    return folder, (folder / 'output.txt').read_text()


@pytest.fixture(scope='module')
def sample(trained):
    return trained[0] / 'data' / 'sample'


@pytest.fixture(scope='module')
def checkpoint(trained):
    return trained[0] / 'run' / 'epoch_2.pth'


def test_training_draws_the_sample_set_and_leaves_checkpoints_table_and_curves(trained):
    folder, output = trained
    assert (folder / 'data' / 'sample' / 'annotations' / 'instances_train2017.json').is_file()
    assert {'epoch_1.pth', 'epoch_2.pth', 'last_checkpoint', 'curves.png'} <= {
        p.name for p in (folder / 'run').iterdir()
    }
    assert not list((folder / 'run').glob('*.part'))
    assert 'eta:' in output
    last_lines = output.splitlines()[-6:]
    assert any(line.split()[:2] == ['AP', 'AP50'] for line in last_lines)
    assert {line.split()[0] for line in last_lines} >= {'bbox', 'segm'}
    assert 'epoch_2.pth' in output.splitlines()[-2] and 'curves.png' in output.splitlines()[-1]
    assert (folder / 'run' / 'curves.png').read_bytes().startswith(b'\x89PNG')
    assert 'System environment' not in output
    assert 'System environment' in next((folder / 'run').glob('*/*.log')).read_text()


def test_averages_best_score_and_losses_of_the_validation(trained):
    folder, _ = trained
    options = ('--ema', '--save-best', 'bbox', '--early-stop', '1', '--val-loss', '--work-dir', 'averaged')
    output = succeeded(tool('train', MASK_RCNN, *options, cwd=folder))
    assert (
        'training on 7 images, 2 epochs of 4 steps of 2 images; validation on 4 images; 5 classes: ' in output
        and "'disc', " in output
    )
    evaluations = json.loads((folder / 'averaged' / 'scores.json').read_text())['evaluations']
    scores = [each['scores'] for each in evaluations]
    assert all(each['val_loss'] > each['val_loss_mask'] > 0 for each in scores)
    best = max(range(len(scores)), key=lambda number: scores[number]['coco/bbox_mAP'])
    (path,) = (folder / 'averaged').glob('best_coco_bbox_mAP_epoch_*.pth')
    assert path.name.endswith(f'_{best + 1}.pth')
    content = torch.load(path, weights_only=False)
    name = 'backbone.patch_embed.0.c.weight'
    assert not torch.equal(content['state_dict'][name], content['ema_state_dict'][f'module.{name}'])
    tested = succeeded(tool('test', folder / 'averaged' / MASK_RCNN.name, path, cwd=folder))
    assert f'coco/bbox_mAP: {scores[best]["coco/bbox_mAP"]:.4f}' in tested
    options = ('--work-dir', 'averaged', '--cfg-options', 'train_cfg.max_epochs=3')
    resumed = succeeded(tool('train', MASK_RCNN, '--resume', *options, cwd=folder))
    assert "default_hooks.checkpoint.save_best: 'coco/bbox_mAP' -> none" in resumed
    assert 'the weights that go on are the average in it' in resumed


def test_training_resumes_where_it_ended(trained, checkpoint):
    folder, _ = trained
    shutil.copytree(folder / 'run', folder / 'resumed')
    (folder / 'resumed' / 'kept.txt').write_text('an existing work dir is never emptied')
    options = ('--work-dir', 'resumed', '--cfg-options', 'train_cfg.max_epochs=3')
    output = succeeded(tool('train', MASK_RCNN, '--resume', *options, cwd=folder))
    assert 'Epoch(train) [3]' in output and 'Epoch(train) [2]' not in output
    assert (folder / 'resumed' / 'epoch_3.pth').is_file() and (folder / 'resumed' / 'kept.txt').is_file()
    state = torch.load(folder / 'resumed' / 'epoch_3.pth', weights_only=False)
    assert state['meta']['epoch'] == 3 and state['meta']['iter'] == 12
    options = ('--work-dir', 'from_path', '--cfg-options', 'train_cfg.max_epochs=3')
    output = succeeded(tool('train', MASK_RCNN, '--fast', '--resume', checkpoint, *options, cwd=folder))
    assert 'Epoch(train) [3]' in output and 'Epoch(train) [2]' not in output
    (line,) = (line for line in output.splitlines() if '--fast: channels-last, ' in line)
    assert line.endswith('fused AdamW') and line in next((folder / 'from_path').glob('*/*.log')).read_text()


def test_bfloat16_and_scaled_rate_on_a_cpu(trained, sample):
    folder, _ = trained
    options = ('--amp', '--auto-scale-lr', '--data-root', sample, '--work-dir', 'amp', '--no-pretrained')
    output = succeeded(tool('train', RETINANET, *options, '--cfg-options', 'train_cfg.max_epochs=1', cwd=folder))
    assert 'Scaling the original LR by 0.5' in output and '--amp: bfloat16 autocast' in output
    state = torch.load(folder / 'amp' / 'epoch_1.pth', weights_only=False)['state_dict']
    assert all(
        value.dtype == torch.float32 and value.isfinite().all() for value in state.values() if value.is_floating_point()
    )


@pytest.fixture(scope='module')
def coco(sample, tmp_path_factory):
    """The drawn images under the names of COCO's classes."""
    folder = tmp_path_factory.mktemp('coco')
    (folder / 'annotations').mkdir()
    for split in ('train2017', 'val2017'):
        (folder / split).symlink_to(sample / split)
        content = json.loads((sample / 'annotations' / f'instances_{split}.json').read_text())
        classes = CocoDataset.METAINFO['classes']
        content['categories'] = [dict(id=number, name=name) for number, name in enumerate(classes, start=1)]
        (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize('detector', ['mask_rcnn', 'retinanet'])
def test_the_configs_for_coco_train_as_they_are(detector, coco, tmp_path):
    config = ROOT / 'configs' / f'{detector}_shvit_s1_coco.py'
    smaller = [
        f'{split}_dataloader.dataset.pipeline.{place}.scale=(160,96)' for split, place in (('train', 2), ('val', 1))
    ]
    shorter = ['train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=2', 'val_dataloader.dataset.indices=2']
    shorter += ['model.test_cfg.rcnn.max_per_img=5'] if detector == 'mask_rcnn' else []
    options = ('--data-root', coco, '--no-pretrained', '--cfg-options', *shorter, *smaller)
    output = succeeded(tool('train', config, *options, cwd=tmp_path))
    assert 'Epoch(train) [1][1/1]' in output and output.splitlines()[-2].endswith('epoch_1.pth')


def test_testing_evaluates_dumps_and_draws(trained, checkpoint):
    folder, _ = trained
    output = succeeded(
        tool('test', MASK_RCNN, checkpoint, '--eval', 'bbox', 'segm', '--classwise', '--out', 'out.pkl',
             '--show-dir', 'pictures', '--work-dir', 'test', cwd=folder)
    )  # fmt: skip
    assert 'triangle' in output
    assert any(line.startswith('bbox ') for line in output.splitlines()[-5:])
    predictions = pickle.loads((folder / 'out.pkl').read_bytes())
    assert len(predictions) == 4 and 'masks' in predictions[0]['pred_instances']
    assert len(list((folder / 'pictures').glob('*.jpg'))) == 4


def test_the_deployed_form_predicts_the_same(trained, checkpoint):
    folder, _ = trained
    predictions = []
    for name, option in (('plain', []), ('deployed', ['--deploy'])):
        succeeded(tool('test', MASK_RCNN, checkpoint, *option, '--out', f'{name}.pkl', '--work-dir', name, cwd=folder))
        predictions.append(pickle.loads((folder / f'{name}.pkl').read_bytes()))
    for plain, deployed in zip(*predictions, strict=True):
        plain, deployed = plain['pred_instances'], deployed['pred_instances']
        assert torch.equal(plain['labels'], deployed['labels'])
        torch.testing.assert_close(plain['scores'], deployed['scores'], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(plain['bboxes'], deployed['bboxes'], rtol=1e-4, atol=1e-2)
    options = ('--deploy', '--dtype', 'bfloat16', '--work-dir', 'rounded')
    assert 'segm' in succeeded(tool('test', MASK_RCNN, checkpoint, *options, cwd=folder))


def test_testing_evaluates_only_what_is_asked_for(trained, checkpoint, sample):
    folder, _ = trained
    arguments = ('--eval', 'bbox', '--data-root', sample, '--work-dir', 'boxes')
    output = succeeded(tool('test', MASK_RCNN, checkpoint, *arguments, cwd=folder))
    rows = [line.split()[0] for line in output.splitlines()[-4:] if line]
    assert 'bbox' in rows and 'segm' not in rows


def test_format_only_writes_result_files(trained, checkpoint):
    folder, _ = trained
    arguments = ('--format-only', '--work-dir', 'formatted')
    succeeded(tool('test', MASK_RCNN, checkpoint, *arguments, cwd=folder))
    for kind in ('bbox', 'segm'):
        assert isinstance(json.loads((folder / 'formatted' / f'results.{kind}.json').read_text()), list)


def test_the_authors_form_of_a_checkpoint_is_tested_and_trained_as_ours(trained, checkpoint, sample):
    """Renamed to the names of mmdet 2.25's files, weights give the same scores, and a run starts from them."""
    folder, _ = trained
    convert_checkpoint(checkpoint, folder / 'official.pth', 'official')
    scores = []
    for file in (checkpoint, 'official.pth'):
        options = ('--eval', 'bbox', 'segm', '--work-dir', 'forms', '--data-root', sample)
        output = succeeded(tool('test', MASK_RCNN, file, *options, cwd=folder))
        scores.append([line for line in output.splitlines()[-4:] if line.startswith(('bbox', 'segm'))])
    assert 'official.pth: official detection, 222 of 222 backbone, 20 of 20 neck, ' in output
    assert scores[0] == scores[1] and len(scores[0]) == 2

    options = ('--work-dir', 'started', '--data-root', sample, '--cfg-options', 'train_cfg.max_epochs=1')
    classes = [f'{split}_dataloader.dataset.metainfo.classes=(disc,square)' for split in ('train', 'val')]
    heads = [f'model.roi_head.{kind}_head.num_classes=2' for kind in ('bbox', 'mask')]
    options += ('load_from=official.pth', 'optim_wrapper.optimizer.lr=0', *classes, *heads)
    output = succeeded(tool('train', MASK_RCNN, *options, cwd=folder))
    line = next(line for line in output.splitlines() if 'official.pth: official detection' in line)
    counts = re.search(r'222 of 222 backbone, 20 of 20 neck, 6 of 6 rpn_head, (\d+) of (\d+) roi_head tensors', line)
    assert int(counts[2]) - int(counts[1]) == 6  # weight and bias of the classes, the boxes and the masks
    left = 'roi_head.bbox_head.fc_cls.weight, roi_head.bbox_head.fc_cls.bias, roi_head.bbox_head.fc_reg.weight, '
    assert f'left at their initial values: {left}' in line
    before, after = (torch.load(folder / name, weights_only=False)['state_dict'] for name in
                     ('run/epoch_2.pth', 'started/epoch_1.pth'))  # fmt: skip
    name = 'neck.lateral_convs.0.conv.weight'
    assert torch.equal(before[name], after[name])


def test_two_nodes_train_together(trained, sample):
    """Two torchruns that meet each other, as on two machines; nothing more has to be said to the tool."""
    folder, _ = trained
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        place = f'127.0.0.1:{free.getsockname()[1]}'
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nnodes', '2', '--nproc-per-node', '1']
    torchrun += ['--rdzv-backend', 'c10d', '--rdzv-endpoint', place, '--rdzv-id', 'test']
    torchrun += ['--local-addr', '127.0.0.1']  # otherwise the name of the machine, which not every network resolves
    train = [ROOT / 'tools' / 'train.py', MASK_RCNN, '--fast', '--work-dir', 'two', '--data-root', sample, '--seed', 0]
    command = [str(part) for part in (*torchrun, *train, '--cfg-options', 'train_cfg.max_epochs=1')]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    nodes = [subprocess.Popen(command, cwd=folder, **pipes) for _ in range(2)]
    outputs = [node.communicate(timeout=300) for node in nodes]
    for node, (_, errors) in zip(nodes, outputs, strict=True):
        assert node.returncode == 0, errors[-3000:]
        assert 'Grad strides do not match' not in errors
    assert any('AP50' in output for output, _ in outputs), outputs
    logs = [path.read_text() for path in (folder / 'two').glob('*/*.log')]
    assert any('Epoch(train) [1][2/2]' in log for log in logs)  # eight images in batches of two on two processes


def test_interrupting_leaves_the_last_checkpoint_and_says_how_to_go_on(trained, sample):
    folder, _ = trained
    command = [
        sys.executable,
        ROOT / 'tools' / 'train.py',
        MASK_RCNN,
        '--work-dir',
        'interrupted',
        '--data-root',
        sample,
    ]
    options = ['--cfg-options', 'train_cfg.max_epochs=1000', 'train_cfg.val_interval=1000']
    process = subprocess.Popen(
        [str(part) for part in command + options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    )
    deadline = time.monotonic() + 120
    while not (folder / 'interrupted' / 'last_checkpoint').is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == 'interrupted' and 'Traceback' not in errors
    assert '--resume' in output.splitlines()[-1]
    last = Path((folder / 'interrupted' / 'last_checkpoint').read_text())
    assert torch.load(last, weights_only=False)['meta']['epoch'] >= 1
    assert not list((folder / 'interrupted').glob('*.part'))


# What is wrong: the tool, its arguments in terms of the fixtures, and words that the one sentence has to hold.
CLASSES = 'metainfo.classes=(cat,dog,bird,fish,horse)'
MISTAKES = {
    'no such config': ('train', ['nowhere.py'], ['no such config', 'nowhere.py']),
    'a config in another folder': ('train', ['a/retinanet_shvit_s1_coco.py'], ['no folder: retinanet_shvit_s1_coco']),
    'a config whose name is misspelt': ('train', [RETINANET.with_name('tiny_retina.py')], [RETINANET.name + '?']),
    'an empty argument': ('train', [RETINANET, '--resume', ''], ['the argument after --resume is empty']),
    'an empty value': ('test', [RETINANET, 'a.pth', '--work-dir='], ['the argument of --work-dir is empty']),
    'no such checkpoint': ('test', [MASK_RCNN, 'nowhere.pth'], ['no such checkpoint', 'nowhere.pth']),
    'a folder for a checkpoint': ('test', [MASK_RCNN, '{empty}'], ['is a folder: name a checkpoint in it']),
    'not a checkpoint': ('test', [MASK_RCNN, '{sample}/sample.json'], ['cannot be read as a checkpoint']),
    'checkpoint of another model': ('test', [RETINANET, '{checkpoint}'], ['another model', 'epoch_2.pth']),
    'resume with a checkpoint of another model': ('train', [RETINANET, '--resume', '{checkpoint}'], ['another model']),
    'no data folder': ('train', [MASK_RCNN, '--data-root', 'nowhere'], ['no such data folder', 'nowhere']),
    'no annotation file': (
        'train', [MASK_RCNN, '--data-root', '{empty}'],
        ['instances_train2017.json', '--data-root', 'make-sample'],
    ),
    'annotations that are not JSON': ('train', [MASK_RCNN, '--data-root', '{not_json}'], ['not COCO JSON']),
    'annotations that are not COCO': ('train', [MASK_RCNN, '--data-root', '{not_coco}'], ['not COCO JSON', "'images'"]),
    'an image is missing': (
        'train', [MASK_RCNN, '--data-root', '{no_image}'], ['1 image_missing', '.jpg does not exist']
    ),
    'unknown arch': (
        'train', [MASK_RCNN, '--cfg-options', 'model.backbone.arch=s9'], ['unknown arch', "'s9'", 's1, s2, s3, s4']
    ),
    'out_indices out of range': (
        'train', [MASK_RCNN, '--cfg-options', 'model.backbone.out_indices=(0,1,7)'], ['out_indices', '0 to 2']
    ),
    'unknown argument of the backbone': (
        'train', [MASK_RCNN, '--cfg-options', 'model.backbone.depth=50'], ['cannot build the model', "'depth'"]
    ),
    'masks of a RetinaNet': ('test', [RETINANET, '{checkpoint}', '--eval', 'segm'], ['segm', 'boxes only', 'bbox']),
    'unknown metric': ('test', [MASK_RCNN, '{checkpoint}', '--eval', 'map'], ["'map'", 'bbox, segm']),
    'nothing to resume': ('train', [MASK_RCNN, '--resume', '--work-dir', 'new'], ['nothing to resume', 'new']),
    'resume from nowhere': ('train', [MASK_RCNN, '--resume', 'nowhere.pth'], ['no such checkpoint', 'nowhere.pth']),
    'classes that match nothing': (
        'train', [MASK_RCNN, '--data-root', '{sample}', '--cfg-options', f'train_dataloader.dataset.{CLASSES}'],
        ['none of the classes', 'cat', 'disc', 'metainfo'],
    ),
    'weights that cannot be downloaded': (
        'train', ['{coco}', '--data-root', '{sample}', '--cfg-options',
                  'model.backbone.init_cfg.checkpoint=http://127.0.0.1:9/shvit_s1.pth'],
        ['cannot download', 'http://127.0.0.1:9/shvit_s1.pth', '--no-pretrained'],
    ),
    'a checkpoint that would run code': ('test', [MASK_RCNN, '{hostile}'], ['needs posix.system', 'could run code']),
    'a run to resume that would run code': ('train', [MASK_RCNN, '--resume', '{hostile}'], ['needs posix.system']),
    'an optimizer that would run code': ('train', [MASK_RCNN, '--resume', '{hostile_optimizer}'], ['could run code']),
    'a start that would run code': (
        'train', [MASK_RCNN, '--data-root', '{sample}', '--cfg-options', 'load_from={hostile}'], ['needs posix.system']
    ),
    'predictions for a checkpoint': ('test', [MASK_RCNN, '{predictions}'], ['cannot be read as a checkpoint']),
    'an option that is none': ('train', [MASK_RCNN, '--cfg-options', 'lr'], ['KEY=VALUE', "'lr'"]),
    'an option with open brackets': ('train', [MASK_RCNN, '--cfg-options', 'a=[1,(2]'], ['closed brackets', 'a=[1']),
    'resume from published weights': (
        'train', [MASK_RCNN, '--resume', '{weights}'], ['no state of a training run', 'load_from=']
    ),
    'start from a checkpoint of another model': (
        'train', [RETINANET, '--data-root', '{sample}', '--cfg-options', 'load_from={checkpoint}'], ['another model']
    ),
    'pretrained weights of another variant': (
        'train', ['{coco}', '--data-root', '{sample}', '--cfg-options',
                  'model.backbone.init_cfg.checkpoint={backbone}'],
        ['another model', 'embed_dims [16, 24, 32]', 'this is a SHViT-S1'],
    ),
    'output that is not a pickle': ('test', [MASK_RCNN, '{checkpoint}', '--out', 'a.json'], ['.pkl', 'a.json']),
    'nothing to deploy': (
        'test', [ROOT / 'tests' / 'data' / 'tiny_r18.py', '{checkpoint}', '--deploy'], ['not a MaskRCNN']
    ),
    'a data type without deployment': ('test', [MASK_RCNN, '{checkpoint}', '--dtype', 'bfloat16'], ['--deploy']),
    'unknown option': ('train', [MASK_RCNN, '--work-dri', 'x'], ['--work-dri']),
}  # fmt: skip


class Command:
    """Pickles as a call of the shell."""

    def __reduce__(self):
        return os.system, ('touch executed',)


@pytest.fixture(scope='module')
def places(trained, sample, checkpoint, tmp_path_factory):
    """Paths for the placeholders in ``MISTAKES``."""
    broken = {}
    for name in ('empty', 'not_json', 'not_coco', 'no_image'):
        broken[name] = tmp_path_factory.mktemp(name)
    for name in ('not_json', 'not_coco', 'no_image'):
        shutil.copytree(sample, broken[name], dirs_exist_ok=True)
    (broken['not_json'] / 'annotations' / 'instances_train2017.json').write_text('{"images": [')
    (broken['not_coco'] / 'annotations' / 'instances_train2017.json').write_text('{"pictures": []}')
    next((broken['no_image'] / 'train2017').glob('*.jpg')).unlink()
    coco = ROOT / 'configs' / 'mask_rcnn_shvit_s1_coco.py'
    files = tmp_path_factory.mktemp('files')
    for name, content in (
        ('hostile', dict(state_dict={}, meta=Command())),
        ('hostile_optimizer', dict(torch.load(checkpoint, weights_only=False), optimizer=dict(state=Command()))),
        ('weights', torch.load(checkpoint, weights_only=False)['state_dict']),
    ):
        broken[name] = files / f'{name}.pth'
        torch.save(content, broken[name])
    broken['predictions'] = files / 'out.pkl'
    broken['predictions'].write_bytes(pickle.dumps([Command()]))
    broken['backbone'] = convert_checkpoint(checkpoint, files / 'backbone.safetensors', 'timm').path
    return dict(sample=sample, checkpoint=checkpoint, coco=coco, **broken)


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(mistake, places, tmp_path):
    name, arguments, words = MISTAKES[mistake]
    if MASK_RCNN in arguments and '--data-root' not in arguments:
        arguments = [*arguments, '--data-root', '{sample}'] if '--cfg-options' not in arguments else arguments
    result = tool(name, *(str(argument).format(**places) for argument in arguments), cwd=tmp_path)
    assert result.returncode == 2, result.stderr[-3000:]
    assert 'Traceback' not in result.stderr
    sentence = result.stderr.strip().splitlines()[-1]
    assert 'error: ' in sentence
    for word in words:
        assert word in sentence
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_drawn_over_a_folder_of_someone_else(tmp_path):
    (tmp_path / 'data' / 'sample').mkdir(parents=True)
    (tmp_path / 'data' / 'sample' / 'thesis.txt').write_text('mine')
    result = tool('train', MASK_RCNN, cwd=tmp_path)
    assert result.returncode == 2 and 'data/sample' in result.stderr and 'Traceback' not in result.stderr
    assert (tmp_path / 'data' / 'sample' / 'thesis.txt').read_text() == 'mine'


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_ground_truth_as_predictions_scores_one(coco_mini, kind):
    """On real photographs, through the evaluator of the COCO configs."""
    from mmdet.evaluation import CocoMetric
    from pycocotools.coco import COCO

    file = coco_mini / 'annotations' / 'instances_val2017.json'
    coco = COCO(str(file))
    categories = sorted(coco.cats)
    metric = CocoMetric(ann_file=str(file), metric=kind)
    metric.dataset_meta = dict(classes=[coco.cats[c]['name'] for c in categories])
    for image_id, image in coco.imgs.items():
        objects = [o for o in coco.imgToAnns[image_id] if not o['iscrowd']]
        boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (o['bbox'] for o in objects)]).reshape(-1, 4)
        prediction = dict(
            bboxes=boxes,
            scores=torch.ones(len(objects)),
            labels=torch.tensor([categories.index(o['category_id']) for o in objects], dtype=torch.long),
            masks=[coco.annToRLE(o) for o in objects],
        )
        metric.process(
            {}, [dict(img_id=image_id, ori_shape=(image['height'], image['width']), pred_instances=prediction)]
        )
    assert metric.evaluate(len(coco.imgs))[f'coco/{kind}_mAP'] == pytest.approx(1.0, abs=0.001)
