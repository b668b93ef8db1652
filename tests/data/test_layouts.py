"""Data sets in the layouts of others: what is read, what is left out, and what is written."""

import json

import layouts
import numpy as np
import pytest
import yaml
from layouts import BOXES, CLASSES, HEIGHT, WIDTH
from PIL import Image
from pycocotools.coco import COCO

from shvit_det.common.errors import UsageError
from shvit_det.data.layouts.reading import read_labels, with_validation
from shvit_det.data.layouts.writing import convert_data

LEFT_TOP_SIZE = [[left, top, right - left, bottom - top] for left, top, right, bottom in BOXES]


def boxes_and_names(split, classes=CLASSES):
    return [(each['bbox'], classes[each['category_id'] - 1]) for each in split.objects]


def counts(labels):
    return {name: (len(split.content['images']), len(split.objects)) for name, split in labels.splits.items()}


def said(labels):
    return '\n'.join(labels.lines())


@pytest.mark.parametrize('masks', [True, False])
def test_roboflow_coco_is_read_without_its_root_category(tmp_path, masks):
    labels = read_labels(layouts.roboflow_coco(tmp_path, masks))
    assert (labels.layout, labels.classes, labels.has_masks) == ('coco', CLASSES, masks)
    assert counts(labels) == {'train': (4, 8), 'val': (2, 4), 'test': (1, 2)}
    assert 'category left out, a root that no object has: shapes' in said(labels)
    assert boxes_and_names(labels.splits['val'])[:2] == list(zip(LEFT_TOP_SIZE, CLASSES, strict=True))
    assert labels.splits['val'].source == tmp_path / 'valid' / '_annotations.coco.json'


def test_a_root_category_that_an_object_has_is_a_class(tmp_path):
    layouts.roboflow_coco(tmp_path)
    path = tmp_path / 'valid' / '_annotations.coco.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['category_id'] = 0
    path.write_text(json.dumps(content))
    assert read_labels(tmp_path).classes == ('shapes', *CLASSES)


def test_one_file_without_validation_is_split_by_images_always_alike(tmp_path):
    labels = with_validation(read_labels(layouts.cvat_coco(tmp_path)))
    assert counts(labels) == {'train': (8, 16), 'val': (2, 4)}
    assert labels.splits['train'].images == tmp_path / 'images' / 'default'
    assert '2 of 10 pictures, drawn with seed 0, are val' in said(labels)
    again = with_validation(read_labels(tmp_path))
    assert again.splits['val'].content == labels.splits['val'].content
    ids = [{image['id'] for image in split.content['images']} for split in labels.splits.values()]
    assert not ids[0] & ids[1] and {each['image_id'] for each in labels.splits['val'].objects} == ids[1]


def test_label_studio_and_coco_itself_are_read(tmp_path):
    labels = read_labels(layouts.label_studio_coco(tmp_path / 'studio'))
    assert counts(labels) == {'train': (5, 10)} and labels.splits['train'].source is None  # backslashes are mended
    image = labels.splits['train'].content['images'][0]
    assert labels.splits['train'].path_of(image).is_file()
    assert counts(read_labels(layouts.plain_coco(tmp_path / 'plain'))) == {'train': (3, 6), 'val': (2, 4)}


def test_broken_pictures_and_labels_of_coco_are_named_and_counted(tmp_path):
    layouts.roboflow_coco(tmp_path)
    (tmp_path / 'train' / 'train_0.jpg').unlink()
    cut = tmp_path / 'train' / 'train_1.jpg'
    cut.write_bytes(cut.read_bytes()[:-200])
    path = tmp_path / 'train' / '_annotations.coco.json'
    content = json.loads(path.read_text())
    content['annotations'][-1]['category_id'] = 77
    path.write_text(json.dumps(content))
    labels = read_labels(tmp_path)
    assert counts(labels)['train'] == (2, 3) and labels.found == (7, 14)
    assert labels.splits['train'].source is None and labels.splits['val'].source is not None
    text = said(labels)
    assert 'image_missing in _annotations.coco.json' in text and 'train_0.jpg' in text
    assert 'train_1.jpg is truncated' in text and 'category_unknown' in text and '77' in text


@pytest.mark.parametrize('outline', [{}, {'size': ['80', '120'], 'counts': 'zz~'}, 'text', [1, 2, 3], 7])
def test_a_broken_outline_beside_objects_without_one_is_left_out(tmp_path, outline):
    path = layouts.roboflow_coco(tmp_path / 'in') / 'train' / '_annotations.coco.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['segmentation'], content['annotations'][1]['segmentation'] = outline, []
    path.write_text(json.dumps(content))
    labels = read_labels(tmp_path / 'in')
    assert counts(labels)['train'] == (4, 8) and not labels.splits['train'].objects[0]['segmentation']
    assert ('outlines in _annotations.coco.json left out, which are broken: 1' in said(labels)) == bool(outline)
    convert_data(tmp_path / 'in', tmp_path / 'out', 'auto', 'labelme')


@pytest.mark.parametrize('name', ['', 'a\0b.jpg', '\ud800.jpg'])
def test_a_file_without_a_usable_name_of_an_image_is_refused_with_the_first(tmp_path, name):
    path = layouts.roboflow_coco(tmp_path) / 'train' / '_annotations.coco.json'
    content = json.loads(path.read_text())
    for image in content['images']:
        image['file_name'] = name
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r'train/_annotations\.coco\.json lists no image with a usable file name, the'):
        read_labels(tmp_path)


def test_splits_that_order_their_categories_differently_get_one_order(tmp_path):
    layouts.roboflow_coco(tmp_path)
    path = tmp_path / 'valid' / '_annotations.coco.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, 'categories': content['categories'][::-1]}))
    labels = read_labels(tmp_path)
    assert labels.splits['val'].source is None and labels.splits['train'].source is not None
    assert boxes_and_names(labels.splits['val'])[:2] == list(zip(LEFT_TOP_SIZE, CLASSES, strict=True))


@pytest.mark.parametrize('polygon', [True, False])
@pytest.mark.parametrize('order', ['images/{}', '{}/images'])
def test_yolo_is_read(tmp_path, polygon, order):
    labels = read_labels(layouts.yolo(tmp_path, polygon, order=order))
    assert (labels.layout, labels.classes, labels.has_masks) == ('yolo', CLASSES, polygon)
    assert counts(labels) == {'train': (4, 6), 'val': (2, 2)} and 'train: 4 pictures, 1 without objects' in said(labels)
    (box, name), *_ = boxes_and_names(labels.splits['train'])
    assert name == 'disc' and np.allclose(box, LEFT_TOP_SIZE[0], atol=0.01)


@pytest.mark.parametrize(
    'yaml',
    [
        'path: .\ntrain: [images/train]\nval: [images/val]\nnames: {0: disc, 1: box}',
        'train: ../images/train\nval: ../images/val\nnames: [disc, box]',
        'train: train.txt\nval: images/val\nnames: [disc, box]',
    ],
)
def test_the_forms_of_data_yaml(tmp_path, yaml):
    layouts.yolo(tmp_path / 'set', yaml=yaml)
    listed = [f'./images/train/train{number}.jpg' for number in range(4)]
    (tmp_path / 'set' / 'train.txt').write_text('\n'.join(listed))
    labels = read_labels(tmp_path / 'set')
    assert labels.classes == CLASSES and counts(labels) == {'train': (4, 6), 'val': (2, 2)}


@pytest.mark.parametrize('order', ['images/{}', '{}/images', 'images'])
def test_a_data_yaml_without_folders_takes_the_usual_ones(tmp_path, order):
    """As supervision writes it; a lone ``images`` has no split of its own."""
    layouts.yolo(tmp_path, yaml='names: [disc, box]\nnc: 2', order=order)
    assert counts(read_labels(tmp_path)) == (
        {'train': (6, 8)} if order == 'images' else {'train': (4, 6), 'val': (2, 2)}
    )


def test_label_studio_yolo_has_no_data_yaml(tmp_path):
    layouts.yolo(tmp_path)
    (tmp_path / 'data.yaml').unlink()
    (tmp_path / 'classes.txt').write_text('disc\nbox\n')
    assert counts(read_labels(tmp_path)) == {'train': (6, 8)}


def test_darknet_has_an_obj_data_and_labels_beside_the_pictures(tmp_path):
    """As CVAT writes it, with paths that begin with a folder which is not in the archive."""
    layouts.yolo(tmp_path)
    (tmp_path / 'data.yaml').unlink()
    for split in ('train', 'val'):
        (tmp_path / 'images' / split).rename(tmp_path / f'obj_{split}_data')
        for path in (tmp_path / 'labels' / split).glob('*.txt'):
            path.rename(tmp_path / f'obj_{split}_data' / path.name)
        pictures = sorted((tmp_path / f'obj_{split}_data').glob('*.jpg'))
        (tmp_path / f'{split}.txt').write_text('\n'.join(f'data/obj_{split}_data/{path.name}' for path in pictures))
    (tmp_path / 'obj.names').write_text('disc\nbox\n')
    (tmp_path / 'obj.data').write_text(
        'classes = 2\ntrain = data/train.txt\nvalid = data/val.txt\nnames = data/obj.names\nbackup = backup/\n'
    )
    labels = read_labels(tmp_path)
    assert (labels.layout, labels.classes, counts(labels)) == ('yolo', CLASSES, {'train': (4, 6), 'val': (2, 2)})
    (tmp_path / 'obj.names').unlink()
    with pytest.raises(UsageError, match=r'obj\.data names data/obj\.names, which does not exist'):
        read_labels(tmp_path)


def test_what_is_broken_in_yolo_is_named_and_counted(tmp_path):
    layouts.yolo(tmp_path)
    (tmp_path / 'images' / 'train' / 'train1.jpg').write_bytes(b'no picture')
    (tmp_path / 'labels' / 'train' / 'alone.txt').write_text('')
    bad = ['7 .5 .5 .1 .1', '0 .5 .5 .1', '0 a b c d', '1 30 20 10 10', '0 .5 .5 0 .1', '0 nan .5 .1 .1']
    (tmp_path / 'labels' / 'train' / 'train0.txt').write_text('\n'.join(bad))
    labels = read_labels(tmp_path)
    assert counts(labels)['train'] == (3, 2) and labels.found == (6, 6 + 2 + 2 + 2)
    text = said(labels)
    for number in range(1, 7):
        assert f'labels/train/train0.txt line {number}' in text
    assert 'images/train/train1.jpg is no image that PIL knows' in text and 'alone.txt' in text


def test_a_picture_that_exif_turns_has_its_upright_size(tmp_path):
    layouts.yolo(tmp_path)
    path = tmp_path / 'images' / 'train' / 'train0.jpg'
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    entry = read_labels(tmp_path).splits['train'].content['images'][0]
    assert (entry['width'], entry['height']) == (HEIGHT, WIDTH)


def test_voc_is_read_by_its_lists(tmp_path):
    labels = read_labels(layouts.voc(tmp_path))
    assert (labels.layout, labels.classes, labels.has_masks) == ('voc', tuple(sorted(CLASSES)), False)
    assert counts(labels) == {'train': (3, 6), 'val': (2, 4)}
    assert boxes_and_names(labels.splits['val'], labels.classes)[:2] == list(zip(LEFT_TOP_SIZE, CLASSES, strict=True))
    text = said(labels)
    assert 'which no list in ImageSets/Main names: 1 (5.xml)' in text and 'val.txt lists' in text and '(7)' in text


def test_lists_of_voc_may_have_other_names_of_the_splits(tmp_path):
    lists = layouts.voc(tmp_path) / 'ImageSets' / 'Main'
    (lists / 'train.txt').rename(lists / 'train2017.txt')
    (lists / 'val.txt').rename(lists / 'Validation.txt')
    (lists / 'train_train.txt').write_text('1 1\n')  # of the class train, as in VOC 2007
    assert counts(read_labels(tmp_path)) == {'train': (3, 6), 'val': (2, 4)}


def test_difficult_objects_are_ignored_and_the_first_pixel_of_voc_itself_is_one(tmp_path):
    labels = read_labels(layouts.voc(tmp_path, lists=False, folder='VOC2012'))
    assert counts(labels) == {'train': (6, 12)} and 'difficult objects, neither trained on nor scored' in said(labels)
    assert [each['iscrowd'] for each in labels.splits['train'].objects][-2:] == [0, 1]
    assert labels.splits['train'].objects[0]['bbox'] == [4, 4, 21, 21]


def test_an_object_of_voc_has_one_box(tmp_path):
    path = layouts.voc(tmp_path) / 'Annotations' / '0.xml'
    text = path.read_text()
    path.write_text(text.replace('<bndbox>', '<bndbox><xmin>9</xmin></bndbox><bndbox>', 1))
    labels = read_labels(tmp_path)
    assert 'objects left out, without a name or a box of four numbers: 1 (Annotations/0.xml object 1)' in said(labels)


def test_xml_files_beside_pictures_in_folders_of_splits(tmp_path):
    for split in ('train', 'valid'):
        layouts.draw_picture(tmp_path / split / f'{split}.jpg')
        layouts.voc_file(tmp_path / split / f'{split}.xml', f'{split}.jpg')
    layouts.draw_picture(tmp_path / 'train' / 'alone.jpg')
    (tmp_path / 'train' / 'broken.xml').write_text('<annotation>')
    labels = read_labels(tmp_path)
    assert counts(labels) == {'train': (1, 2), 'val': (1, 2)}
    assert 'train/alone.jpg' in said(labels) and 'train/broken.xml: no element found' in said(labels)


@pytest.mark.parametrize('kind', ['polygon', 'rectangle'])
def test_labelme_is_read(tmp_path, kind):
    labels = read_labels(layouts.labelme(tmp_path, kind))
    assert (labels.layout, labels.classes) == ('labelme', tuple(sorted(CLASSES)))
    assert counts(labels) == {'train': (5, 10)} and labels.has_masks == (kind == 'polygon')


def test_other_shapes_of_labelme_are_named_and_groups_are_one_object(tmp_path):
    layouts.labelme(tmp_path)
    content = json.loads((tmp_path / '0.json').read_text())
    for shape in content['shapes']:
        shape.update(label='disc', group_id=1)
    content['shapes'].append(dict(label='disc', points=[[1, 1], [5, 5]], shape_type='circle'))
    (tmp_path / '0.json').write_text(json.dumps(content))
    (tmp_path / 'other.json').write_text('{"version": 1}')
    labels = read_labels(tmp_path)
    first = labels.splits['train'].objects[0]
    assert counts(labels) == {'train': (5, 9)} and len(first['segmentation']) == 2 and first['bbox'] == [5, 5, 45, 29]
    assert 'shapes left out, of the kind circle: 1 (0.json shape 3)' in said(labels) and 'other.json' in said(labels)


@pytest.mark.parametrize(
    ('name', 'message'),
    [('nothing', 'none of the layouts that are read'), ('missing', 'no such folder'), ('two', 'would both be train')],
)
def test_what_is_no_data_set_is_refused_in_one_sentence(tmp_path, name, message):
    (tmp_path / 'nothing').mkdir()
    layouts.coco_file(tmp_path / 'two' / 'train' / 'a_coco.json', ['a.jpg'])
    layouts.coco_file(tmp_path / 'two' / 'train' / 'b_coco.json', ['a.jpg'])
    with pytest.raises(UsageError, match=message) as refused:
        read_labels(tmp_path / name)
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('names: [a', 'cannot read .*data.yaml'),
        ('names: 3', 'neither a list nor a dict'),
        ('names: {a: 1, 2: b}', 'other keys than 0 to 1'),
        ('names: [a, a]', 'a name twice: a'),
        ('names: [disc, box]\ntrain: nowhere', 'names nowhere, and there is no'),
    ],
)
def test_a_data_yaml_that_says_nothing_usable_is_refused(tmp_path, text, message):
    layouts.yolo(tmp_path, yaml=text)
    with pytest.raises(UsageError, match=message):
        read_labels(tmp_path)


def test_a_data_yaml_without_pictures_is_refused(tmp_path):
    (tmp_path / 'data.yaml').write_text('names: [disc, box]')
    with pytest.raises(UsageError, match='names no pictures'):
        read_labels(tmp_path)


def test_broken_files_of_labelme_and_folders_with_their_names_are_no_obstacle(tmp_path):
    layouts.labelme(tmp_path)
    (tmp_path / 'folder.json').mkdir()
    texts = '[]', '{"shapes": 3}', '{"shapes": [1, {"label": "q", "points": [[1, "x"]]}]}'
    for number, text in enumerate((*texts, '{"shapes": [], "imagePath": "a\\u0000"}')):
        (tmp_path / f'{number + 1}.json').write_text(text)
    (tmp_path / 'deep.json').write_text('[' * 100_000)
    labels = read_labels(tmp_path)
    assert counts(labels) == {'train': (2, 2)} and '3.json shape 1, 3.json shape 2' in said(labels)
    assert 'JSON files left out, which are not of LabelMe: 4' in said(labels)


def test_a_set_without_one_picture_is_refused(tmp_path):
    layouts.yolo(tmp_path)
    for path in tmp_path.rglob('*.jpg'):
        path.write_bytes(b'')
    with pytest.raises(UsageError, match=r'not one picture .* has zero bytes'):
        read_labels(tmp_path)


MAKERS = {
    'coco': layouts.roboflow_coco,
    'yolo': lambda root: layouts.yolo(root, polygon=True),
    'voc': layouts.voc,
    'labelme': layouts.labelme,
}


@pytest.mark.parametrize('to', ['coco', 'yolo', 'labelme'])
@pytest.mark.parametrize('layout', MAKERS)
def test_conversion_keeps_pictures_objects_and_names(tmp_path, layout, to):
    before = read_labels(MAKERS[layout](tmp_path / 'in'))
    lines = convert_data(tmp_path / 'in', tmp_path / 'out', layout, to)
    after = read_labels(tmp_path / 'out')
    names = before.classes if to != 'labelme' else tuple(sorted(before.classes))  # it has no list of them
    assert after.layout == to and after.classes == names and counts(after) == counts(before)
    assert after.has_masks == before.has_masks and lines[-1].startswith('written: ')
    for name, split in before.splits.items():
        written = after.splits[name]
        for one, two in zip(split.objects, written.objects, strict=True):
            assert before.classes[one['category_id'] - 1] == names[two['category_id'] - 1]
            assert np.allclose(one['bbox'], two['bbox'], atol=0.02)
        for one, two in zip(split.content['images'], written.content['images'], strict=True):
            assert split.path_of(one).read_bytes() == written.path_of(two).read_bytes()
    if to == 'coco':
        COCO(tmp_path / 'out' / 'annotations' / 'instances_train.json')
    elif to == 'yolo':
        settings = yaml.safe_load((tmp_path / 'out' / 'data.yaml').read_text())
        assert settings['names'] == dict(enumerate(before.classes)) and settings['train'] == 'images/train'


def test_run_lengths_become_polygons_and_crowds_are_counted(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:20, 10:30] = mask[10:20, 40:50] = 1
    starts = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(order='F')]))).tolist()
    rle = dict(size=[HEIGHT, WIDTH], counts=np.diff([0, *starts, mask.size]).tolist())
    layouts.draw_picture(tmp_path / 'in' / 'train' / 'a.jpg')
    common = dict(image_id=1, category_id=1, area=300, bbox=[10, 10, 40, 10], segmentation=rle)
    layouts.coco_file(
        tmp_path / 'in' / 'train' / '_annotations.coco.json',
        ['a.jpg'],
        images=[dict(id=1, file_name='a.jpg', width=WIDTH, height=HEIGHT)],
        annotations=[dict(common, id=1, iscrowd=0), dict(common, id=2, iscrowd=1)],
    )
    text = '\n'.join(convert_data(tmp_path / 'in', tmp_path / 'out', 'auto', 'yolo'))
    assert 'several parts, joined by lines: 1 (object 1 of a.jpg)' in text and 'crowds and difficult' in text
    (written,) = read_labels(tmp_path / 'out').splits['train'].objects
    assert np.allclose(written['bbox'], [10, 10, 40, 10], atol=0.3) and abs(written['area'] - 300) < 15


def test_pictures_of_one_name_in_several_folders_stay_apart(tmp_path):
    for folder in 'ab':
        layouts.draw_picture(tmp_path / 'in' / folder / 'x.jpg', ord(folder))
        layouts.voc_file(tmp_path / 'in' / folder / 'x.xml', 'x.jpg')
    convert_data(tmp_path / 'in', tmp_path / 'out', 'voc', 'yolo')
    assert sorted(path.name for path in (tmp_path / 'out' / 'images' / 'train').iterdir()) == ['x.jpg', 'x_2.jpg']


def test_nothing_is_written_if_the_conversion_fails(tmp_path, monkeypatch):
    layouts.voc(tmp_path / 'in')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine.txt').write_text('kept')
    with pytest.raises(UsageError, match='exists and is not an empty folder'):
        convert_data(tmp_path / 'in', tmp_path / 'full', 'auto', 'coco')

    def fail(*_):
        raise OSError(28, 'No space left on device', 'a.jpg')

    monkeypatch.setattr('shutil.copyfile', fail)
    with pytest.raises(UsageError, match=r'cannot write a\.jpg: No space left on device'):
        convert_data(tmp_path / 'in', tmp_path / 'out', 'auto', 'coco')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['full', 'in']
