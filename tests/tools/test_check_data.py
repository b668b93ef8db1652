"""Checking data, and training on bad data, as a user meets both: processes, exit status, last lines, files."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from paths import MASK_RCNN, ROOT, photographs
from processes import tool
from tool_runs import RETINANET, succeeded

from shvit_det import UsageError
from shvit_det.configuration.data_check import check_data
from shvit_det.data.sample import draw_sample

pytestmark = pytest.mark.slow

NUM_TRAIN, NUM_VAL = 8, 4
ONE_EPOCH = 'train_cfg.max_epochs=1'


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp('drawn') / 'sample'
    draw_sample(root, num_train=NUM_TRAIN, num_val=NUM_VAL)
    return root


@pytest.fixture
def data(drawn, tmp_path):
    """A copy of the sample set to break, and an empty working folder beside it."""
    shutil.copytree(drawn, tmp_path / 'data')
    (tmp_path / 'work').mkdir()
    return tmp_path / 'data'


@pytest.fixture
def work(data):
    return data.parent / 'work'


def file_of(data: Path, split: str = 'train') -> Path:
    return data / 'annotations' / f'instances_{split}2017.json'


def change(data: Path, function, split: str = 'train') -> dict:
    content = json.loads(file_of(data, split).read_text())
    function(content)
    file_of(data, split).write_text(json.dumps(content))
    return content


def first_image(data: Path, split: str = 'train') -> Path:
    """Return the path of the first image with objects that are no crowd."""
    content = json.loads(file_of(data, split).read_text())
    return data / f'{split}2017' / content['images'][1]['file_name']


def snapshot(folder: Path) -> dict:
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_good_data_is_said_to_be_good(data, work):
    result = tool('check_data', MASK_RCNN, '--data-root', data, cwd=work)
    lines = succeeded(result).splitlines()
    assert lines[0] == f'train: {file_of(data)}' and 'all images decoded' in lines[1]
    assert 'objects are trained on (not: ' in lines[2] and 'objects are scored' in lines[6]
    assert lines[4] == f'val, test: {file_of(data, "val")}' and lines[3] == lines[7] == '  nothing wrong'
    assert result.stderr == '' and list(work.iterdir()) == []


def test_faults_are_listed_and_a_cleaned_copy_trains(data, work):
    change(data, lambda content: content['annotations'][1].update(bbox=[1, 2, 3]))
    change(data, lambda content: content['annotations'][2].update(id=content['annotations'][3]['id']))
    change(data, lambda content: content['annotations'][0].update(area=-1), 'val')
    change(data, lambda content: content['annotations'][1].pop('iscrowd'), 'val')
    total = {split: len(json.loads(file_of(data, split).read_text())['annotations']) for split in ('train', 'val')}
    image = first_image(data)
    image.write_bytes(image.read_bytes()[:-500])
    before = snapshot(data)

    arguments = (MASK_RCNN, '--data-root', data, '--fix', 'clean', '--json', 'found.json', '--examples', 1)
    result = tool('check_data', *arguments, cwd=work)
    assert result.returncode == 1, result.stderr
    counts = {line.split()[1]: line.split()[2] for line in result.stdout.splitlines() if line.startswith('  error')}
    assert counts == {'image_truncated': '1', 'annotation_id_duplicate': '1', 'box_invalid': '1', 'crowd_missing': '1'}
    assert image.name in result.stdout
    assert snapshot(data) == before

    train, val = json.loads((work / 'found.json').read_text())['sets']
    assert train['splits'] == 'train' and val['splits'] == 'val, test'
    assert train['totals'] == dict(images=NUM_TRAIN, annotations=total['train'], categories=5)
    (example,) = train['findings']['image_truncated']['examples']
    assert image.name in example['message'] and int(image.stem) == example['image_id']
    cleaned = json.loads((work / 'clean' / file_of(data).name).read_text())
    lost = sum(entry['image_id'] == int(image.stem) for entry in json.loads(before[file_of(data)])['annotations']) + 1
    assert len(cleaned['annotations']) == total['train'] - lost and len(cleaned['images']) == NUM_TRAIN - 1
    line = next(line for line in result.stdout.splitlines() if line.startswith('clean/instances_train'))
    assert f'{NUM_TRAIN - 1} of {NUM_TRAIN} images, {total["train"] - lost} of {total["train"]} annotations' in line

    options = shlex.split(result.stdout.splitlines()[-1].removeprefix('Use them: '))
    assert {option.split('=')[0] for option in options[1:]} == {
        *(f'{split}_dataloader.dataset.ann_file' for split in ('train', 'val', 'test')),
        'val_evaluator.ann_file', 'test_evaluator.ann_file',
    }  # fmt: skip
    again = tool('check_data', MASK_RCNN, '--data-root', data, *options, cwd=work)
    assert again.returncode == 0 and 'error' not in again.stdout
    output = succeeded(tool('train', MASK_RCNN, '--data-root', data, *options, ONE_EPOCH, cwd=work))
    num_crowds = sum(entry['iscrowd'] for entry in cleaned['annotations'])
    num_objects = len(cleaned['annotations'])
    assert f'{num_objects - num_crowds} of {num_objects} objects are trained on' in output

    result = tool('check_data', *arguments, cwd=work)
    assert result.returncode == 2 and 'overwrites nothing' in result.stderr


def test_numbers_as_text_are_cast_and_a_copy_that_loses_most_is_refused(data, work):
    def as_text(content):
        for entry in content['annotations']:
            entry.update(iscrowd=str(entry['iscrowd']), bbox=[str(side) for side in entry['bbox']])

    change(data, as_text)
    arguments = (MASK_RCNN, '--data-root', data, '--no-images', '--fix')
    result = tool('check_data', *arguments, 'clean', cwd=work)
    total = len(json.loads(file_of(data).read_text())['annotations'])
    assert result.returncode == 1
    assert f'{total} of {total} annotations' in result.stdout and f'{total} annotation_form' in result.stdout
    options = shlex.split(result.stdout.splitlines()[-1].removeprefix('Use them: '))
    assert tool('check_data', MASK_RCNN, '--data-root', data, '--no-images', *options, cwd=work).returncode == 0

    change(data, lambda content: [entry.update(bbox=[1, 2, 3]) for entry in content['annotations']])
    result = tool('check_data', *arguments, 'other', cwd=work)
    assert result.returncode == 2 and f'would leave 0 of {total} objects' in result.stderr
    assert not (work / 'other').exists()
    result = tool('check_data', *arguments, 'other', '--allow-loss', cwd=work)
    assert result.returncode == 1 and f'0 of {total} annotations' in result.stdout


def test_what_is_missing_is_told_before_any_image_is_looked_at(data):
    file_of(data, 'val').unlink()
    told = []
    with pytest.raises(UsageError, match=r'no annotation file .*val2017'):
        check_data(str(MASK_RCNN), data_root=str(data), progress=told.append)
    assert told == []


def test_wrapped_data_sets_are_found_in_their_places(data, work):
    change(data, lambda content: content['annotations'][0].update(area=None))
    config = work / 'config.py'
    config.write_text(
        f'_base_ = {str(RETINANET)!r}\n'
        'inner = dict(type="CocoDataset", data_root="data/sample/", metainfo={{_base_.metainfo}},\n'
        '    ann_file="annotations/instances_train2017.json", data_prefix=dict(img="train2017/"), pipeline=[])\n'
        'train_dataloader = dict(dataset=dict(_delete_=True, type="RepeatDataset", times=2,\n'
        '    dataset=dict(type="ConcatDataset", datasets=[inner, inner])))\n'
    )
    result = tool('check_data', config, '--data-root', data, '--headers-only', '--fix', 'clean', cwd=work)
    assert result.returncode == 1 and 'the headers of all images' in result.stdout
    options = result.stdout.splitlines()[-1]
    for number in range(2):
        assert f'train_dataloader.dataset.dataset.datasets.{number}.ann_file={work}/clean/instances_train' in options
    options = shlex.split(options.removeprefix('Use them: '))
    assert tool('check_data', config, '--data-root', data, '--no-images', *options, cwd=work).returncode == 0


def test_a_data_set_that_reads_its_file_in_its_own_way_is_checked_less(data, work):
    """LVIS for instance, which has no iscrowd."""
    change(data, lambda content: [each.pop('iscrowd') for each in content['annotations']], 'val')
    (work / 'own_way.py').write_text(
        'from mmdet.datasets import CocoDataset\nfrom mmengine.registry import DATASETS\n'
        '@DATASETS.register_module()\nclass OwnWay(CocoDataset):\n'
        '    def parse_data_info(self, info):\n        return super().parse_data_info(info)\n'
    )
    options = ('--cfg-options', 'val_dataloader.dataset.type=OwnWay', 'test_dataloader.dataset.type=OwnWay')
    config = work / 'config.py'
    config.write_text(
        f'import sys\nsys.path.insert(0, {str(work)!r})\n_base_ = {str(RETINANET)!r}\n'
        'custom_imports = dict(imports=["shvit_det", "own_way"])\n'
    )
    found = tool('check_data', config, '--data-root', data, '--fix', 'clean', cwd=work)
    assert found.returncode == 1 and 'crowd_missing' in found.stdout
    found = tool('check_data', config, '--data-root', data, '--fix', 'other', *options, cwd=work)
    assert found.returncode == 0 and 'its dataset reads it in a way of its own' in found.stdout
    first_image(data, 'val').unlink()
    found = tool('check_data', config, '--data-root', data, *options, cwd=work)
    assert found.returncode == 1 and 'image_missing' in found.stdout


@pytest.mark.parametrize(
    'arguments, status, words',
    [
        ([MASK_RCNN, '--data-root', '{broken}'], 1, ['is not COCO JSON', 'val, test']),
        ([MASK_RCNN, '--data-root', '{absent}'], 2, ['no annotation file', '--data-root']),
        ([MASK_RCNN, '--data-root', 'nowhere'], 2, ['no such data folder', 'nowhere']),
        ([ROOT / 'configs' / 'shvit_s1_imagenet.py'], 2, ['no data set in the form of COCO']),
        ([MASK_RCNN, '--data-root', '{data}', '--workers', '0'], 2, ['--workers is 0']),
        (
            [MASK_RCNN, '--data-root', '{data}', '--fix', '{data}/val2017/../annotations/instances_val2017.json/new'],
            2,
            ['--fix takes a folder', 'is a file'],
        ),
        (['nowhere.py'], 2, ['no such config']),
        ([MASK_RCNN, '--headers-only', '--no-images'], 2, ['not allowed with']),
        ([MASK_RCNN, '--data-root', '{data}', '--json', 'no/such/folder'], 2, ['cannot write no/such/folder']),
        ([MASK_RCNN, '--data-root', '{data}', '--cfg-options', 'bad_data=no'], 2, ["'no'", 'refuse, skip']),
    ],
)
def test_how_the_check_ends(arguments, status, words, data, work):
    places = dict(data=data, broken=work.parent / 'broken', absent=work.parent / 'absent')
    shutil.copytree(data, places['broken'])
    file_of(places['broken']).write_bytes(file_of(data).read_bytes()[:1000])
    places['absent'].mkdir()
    result = tool('check_data', *(str(argument).format(**places) for argument in arguments), cwd=work)
    assert result.returncode == status and 'Traceback' not in result.stderr
    for word in words:
        assert word in result.stdout + result.stderr
    assert list(work.iterdir()) == []


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_image_ends_training_with_its_name(workers, data, work):
    image = first_image(data)
    image.write_bytes(image.read_bytes()[:-500])
    options = ('--cfg-options', f'train_dataloader.num_workers={workers}')
    result = tool('train', RETINANET, '--data-root', data, *options, cwd=work)
    assert result.returncode == 1 and 'Traceback' not in result.stderr, result.stderr[-3000:]
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith(f'error: the image {image} ') and 'bad_data=skip' in sentence
    assert sentence.endswith('no checkpoint was written yet')


def test_bad_data_is_passed_over_and_reported_once(data, work):
    """Two epochs, two workers: an annotation, a training image and a validation image are bad."""
    broken = change(data, lambda content: content['annotations'][1].update(bbox=[1, 2, 3]))
    images = [first_image(data), first_image(data, 'val')]
    images[0].write_bytes(images[0].read_bytes()[:-500])
    images[1].unlink()
    options = ('bad_data=skip', 'train_dataloader.num_workers=2', 'val_dataloader.num_workers=2')
    output = succeeded(tool('train', RETINANET, '--data-root', data, '--cfg-options', *options, cwd=work))
    assert '1 objects removed (1 box_invalid)' in output
    total = len(broken['annotations'])
    assert f' of {total - 1} objects are trained on' in output
    log = next((work / 'work_dirs').glob('*/*/*.log')).read_text()
    for image, words in zip(images, ('another image is taken instead', 'scored as a black picture'), strict=True):
        (line,) = [line for line in output.splitlines() if f'the image {image} ' in line]
        assert words in line and log.count(f'the image {image} ') == 1


@pytest.mark.parametrize('split', ['train', 'val'])
def test_errors_in_annotations_end_training_before_it_starts(split, data, work):
    change(data, lambda content: content['annotations'][1].update(bbox=[1, 2, 3]), split)
    options = ('--cfg-options', 'bad_data=skip') if split == 'val' else ()
    result = tool('train', RETINANET, '--data-root', data, *options, cwd=work)
    sentence = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 2 and 'Traceback' not in result.stderr
    for words in (str(file_of(data, split)), '1 error (1 box_invalid)', '[1, 2, 3]', 'shvit-det check-data'):
        assert words in sentence
    assert list(work.iterdir()) == []


@pytest.mark.parametrize('name', ['coco_mini', 'nuclei'])
def test_real_photographs_have_no_errors(name, tmp_path):
    root = photographs(name)
    config = ROOT / 'configs' / 'mask_rcnn_shvit_s1_coco.py'
    options = []
    if name == 'nuclei':
        splits = dict(train='train', val='val', test='val')
        options = ['--cfg-options', *(
            f'{split}_dataloader.dataset.{key}' for split, part in splits.items() for key in (
                f'ann_file=annotations/instances_{part}.json', 'data_prefix.img=images', 'metainfo.classes=[nucleus]')
        ), *(
            f'{split}_evaluator.ann_file={root}/annotations/instances_val.json' for split in ('val', 'test')
        )]  # fmt: skip
    result = tool('check_data', config, '--data-root', root, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
