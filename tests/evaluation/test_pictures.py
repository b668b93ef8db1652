"""The pictures of a test show what the model saw, each in a file of its own."""

import json
from threading import Event
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from coco_files import CLASSES, HEIGHT, WIDTH, coco_dataset, write_set
from mmdet.datasets import ConcatDataset
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from paths import MASK_RCNN
from PIL import Image

from shvit_det import UsageError
from shvit_det.common.errors import RunError
from shvit_det.configuration.detection import Detection
from shvit_det.data.sample import draw_sample
from shvit_det.evaluation.evaluate import evaluate
from shvit_det.evaluation.pictures import PictureHook
from shvit_det.prediction.overlap import Finishing

pytestmark = pytest.mark.slow

IGNORE_EXIF = {'test_dataloader.dataset.pipeline.0.color_type': 'color_ignore_orientation'}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'a.pth'
    torch.save(dict(state_dict=Detection().build(Config.fromfile(MASK_RCNN)).state_dict()), path)
    return str(path)


@pytest.fixture
def data(tmp_path):
    """The sample set with images in two folders: two share a name, one lies on its side as its EXIF says."""
    folder = tmp_path / 'data'
    draw_sample(folder, num_train=1, num_val=4)
    file = folder / 'annotations' / 'instances_val2017.json'
    content = json.loads(file.read_text())
    for image, name in zip(content['images'], ('a/1.jpg', 'b/1.jpg', 'b/deep/2.png', 'b/deep/2.bmp'), strict=True):
        path = folder / 'val2017' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(folder / 'val2017' / image['file_name']) as pixels:
            exif = Image.Exif()
            exif[0x0112] = 6 if name == 'b/1.jpg' else 1
            pixels.save(path, exif=exif, **(dict(quality=95) if path.suffix == '.jpg' else {}))
        image['file_name'] = name
    file.write_text(json.dumps(content))
    return folder


@pytest.fixture
def drawn(weights, data, tmp_path):
    """Test and draw; return the pictures by their names."""

    def drawn(**options):
        folder = tmp_path / 'pictures'
        evaluate(str(MASK_RCNN), weights, data_root=str(data), work_dir=str(tmp_path / 'work'), show_dir=str(folder),
                 cfg_options={'default_hooks.visualization.score_thr': 1.0, **options})  # fmt: skip
        return {str(path.relative_to(folder)): cv2.imread(str(path)) for path in folder.rglob('*') if path.is_file()}

    return drawn


def right_half(picture):
    """The half that has the predictions, here none, in the size of the image."""
    return cv2.resize(picture[:, picture.shape[1] // 2 :], (192, 192), interpolation=cv2.INTER_AREA).astype(int)


def test_every_image_has_a_picture_of_its_own_that_shows_it(drawn, data):
    pictures = drawn()
    assert sorted(pictures) == ['a/1.jpg', 'b/1.jpg', 'b/deep/2-2.png', 'b/deep/2.png']
    for name, file in zip(sorted(pictures), ('a/1.jpg', 'b/1.jpg', 'b/deep/2.bmp', 'b/deep/2.png'), strict=True):
        image = cv2.imread(str(data / 'val2017' / file)).astype(int)  # which OpenCV turns upright
        assert pictures[name].shape == (576, 1152, 3)
        assert np.abs(right_half(pictures[name]) - image).mean() < 4
        truth = pictures[name][:, :576].astype(int)
        assert np.abs(truth - pictures[name][:, 576:]).mean() > 2


@pytest.mark.parametrize(
    ('folder', 'error', 'words'),
    [
        ('val2017', UsageError, 'where the images of the test are: name another folder'),
        ('elsewhere', RunError, r'data/val2017/.*\.jpg is an image of the test, and its picture would replace it'),
    ],
)
def test_images_of_the_test_are_not_replaced(folder, error, words, weights, data, tmp_path):
    (data / 'elsewhere').symlink_to(data / 'val2017')
    shown = data / folder
    if folder == 'elsewhere':  # the names in the file begin with a folder, so that pictures would lie in val2017 itself
        file = data / 'annotations' / 'instances_val2017.json'
        content = json.loads(file.read_text())
        for image in content['images']:
            image['file_name'] = f'val2017/{image["file_name"]}'
        file.write_text(json.dumps(content))
    prefix = {'test_dataloader.dataset.data_prefix.img': ''} if folder == 'elsewhere' else {}
    before = {path: path.read_bytes() for path in data.rglob('*') if path.is_file()}
    with pytest.raises(error, match=words):
        evaluate(str(MASK_RCNN), weights, data_root=str(data), work_dir=str(tmp_path / 'work'), show_dir=str(shown),
                 cfg_options=prefix)  # fmt: skip
    assert {path: path.read_bytes() for path in data.rglob('*') if path.is_file()} == before


def test_an_image_is_not_turned_where_the_pipeline_does_not_turn_it(drawn, data):
    picture = drawn(**IGNORE_EXIF)['b/1.jpg']
    stored = np.asarray(Image.open(data / 'val2017' / 'b' / '1.jpg'))[..., ::-1].astype(int)
    assert np.abs(right_half(picture) - stored).mean() < 4 < np.abs(right_half(picture) - np.rot90(stored, -1)).mean()


def test_masks_fit_where_exif_is_ignored(drawn, data):
    """An image that is listed as it is stored, twice as wide as high, and would be turned upright by others."""
    file = data / 'annotations' / 'instances_val2017.json'
    content = json.loads(file.read_text())
    image = next(each for each in content['images'] if each['file_name'] == 'b/1.jpg')
    image['height'] = 96
    content['annotations'] = [
        dict(id=1, image_id=image['id'], category_id=1, bbox=[20, 20, 100, 50], area=5000, iscrowd=0,
             segmentation=[[20, 20, 120, 20, 120, 70, 20, 70]])
    ]  # fmt: skip
    file.write_text(json.dumps(content))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (192, 96), (90, 90, 90)).save(data / 'val2017' / 'b' / '1.jpg', exif=exif)
    picture = drawn(**IGNORE_EXIF)['b/1.jpg']
    assert picture.shape == (96 * 3, 2 * 192 * 3, 3)
    changed = (np.abs(picture[:, :576].astype(int) - 90) > 20).any(2)
    assert changed[60:210, 60:360].mean() > 0.95 and not changed[230:].any() and not changed[:, 380:].any()


def test_an_image_that_is_passed_over_is_drawn_black_as_it_is_scored(drawn, data):
    (data / 'val2017' / 'a' / '1.jpg').write_bytes(b'no image')
    pictures = drawn(bad_data='skip')
    assert len(pictures) == 4 and right_half(pictures['a/1.jpg'])[4:-4, 4:-4].max() == 0


def test_annotations_that_are_resized_with_their_image_are_drawn_where_they_belong(drawn, data):
    """mmdet loads them after resizing; pipelines of users often before."""
    steps = Config.fromfile(MASK_RCNN).test_dataloader.dataset.pipeline
    resize = dict(type='Resize', scale=(96, 96), keep_ratio=True)
    load, annotate, pack = steps[0], steps[-2], steps[-1]
    assert annotate['type'] == 'LoadAnnotations'
    usual = drawn(**{'test_dataloader.dataset.pipeline': [load, resize, annotate, pack]})
    for name, picture in drawn(**{'test_dataloader.dataset.pipeline': [load, annotate, resize, pack]}).items():
        assert (picture[:, :576] == usual[name][:, :576]).all()


def test_a_folder_that_cannot_be_written_is_a_mistake(weights, data, tmp_path):
    (tmp_path / 'pictures').touch()
    with pytest.raises(
        UsageError, match=r'cannot write into the folder of pictures .* name another one with --show-dir'
    ):
        evaluate(str(MASK_RCNN), weights, data_root=str(data), work_dir=str(tmp_path / 'work'),
                 show_dir=str(tmp_path / 'pictures'))  # fmt: skip
    assert not (tmp_path / 'work').exists()


def test_other_results_are_drawn_by_mmdet(tmp_path):
    file = write_set(tmp_path / 'data')
    dataset = coco_dataset(file, pipeline=[dict(type='LoadImageFromFile'), dict(type='mmdet.PackDetInputs')])
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=CLASSES, palette=[(250, 0, 0)] * 3)
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset), visualizer=visualizer)
    hook = PictureHook(tmp_path / 'pictures', 0.3, Finishing(0))
    hook.before_test(runner)
    sample = DetDataSample(metainfo={key: dataset.get_data_info(0)[key] for key in ('img_path', 'img_id')})
    classes = torch.full((1, HEIGHT, WIDTH), len(CLASSES))
    classes[:, 10:20, 10:30] = 1
    sample.pred_panoptic_seg = PixelData(sem_seg=classes)
    hook.after_test_iter(runner, 0, None, [sample])
    (path,) = (tmp_path / 'pictures').iterdir()
    assert path.name == '3.jpg'
    drawn = cv2.imread(str(path))[:, -WIDTH:].astype(int)
    changed = np.abs(drawn - cv2.imread(str(file.parent / 'images' / '3.jpg'))).max(2)
    assert changed[11:19, 11:29].mean() > 20 > 5 > changed[:, :7].mean()


def test_the_next_images_are_predicted_while_pictures_are_drawn(tmp_path):
    predicted = Event()

    def load_when_predicted(entry):
        assert predicted.wait(20)
        return dict(entry, img=np.zeros((HEIGHT, WIDTH, 3), np.uint8))

    dataset = coco_dataset(write_set(tmp_path / 'data'), pipeline=[load_when_predicted])
    with Finishing(1) as drawing:
        hook = PictureHook(tmp_path / 'pictures', 0.3, drawing)
        hook.before_test(SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset)))
        sample = DetDataSample(metainfo={key: dataset.get_data_info(0)[key] for key in ('img_path', 'img_id')})
        sample.pred_instances = InstanceData(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0))
        hook.after_test_iter(None, 0, None, [sample])
        predicted.set()
    assert [path.name for path in (tmp_path / 'pictures').iterdir()] == ['3.jpg']


def test_images_of_two_data_sets_have_places_of_their_own(tmp_path):
    """With the same names and ids in both."""
    sets = [coco_dataset(write_set(tmp_path / name), pipeline=[]) for name in ('first', 'second')]
    dataset = ConcatDataset(sets)
    hook = PictureHook(tmp_path / 'pictures', 0.3, Finishing(0))
    hook.before_test(SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset)))
    targets = sorted(str(target.relative_to(tmp_path / 'pictures')) for _, target in hook.places.values())
    assert targets == [f'{name}/images/{number}.jpg' for name in ('first', 'second') for number in (3, 5, 8, 9)]
    assert {id(place) for (place, _), _ in hook.places.values()} == set(map(id, sets))
