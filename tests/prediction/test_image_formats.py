"""Images of many formats, depths and kinds are read as the pipeline reads them, or named with the reason."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from paths import MASK_RCNN
from PIL import Image, ImageOps, TiffImagePlugin

from shvit_det import UsageError
from shvit_det.common.image_files import pages_of
from shvit_det.configuration.detection import Detection
from shvit_det.prediction.image_reader import ImageReader, to_picture

HEIGHT, WIDTH = 96, 128


@pytest.fixture(scope='module')
def config():
    Detection().register()
    return Config.fromfile(MASK_RCNN)


@pytest.fixture(scope='module')
def reader(config):
    return ImageReader(config)


@pytest.fixture(scope='module')
def grey_reader(config):
    config = Config(config.to_dict())
    config.test_dataloader.dataset.pipeline[0].color_type = 'grayscale'
    return ImageReader(config)


def frames(count=1, mode='RGB'):
    """Smooth noise that moves from frame to frame."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    noise = cv2.GaussianBlur(noise, (0, 0), 3)
    return [Image.fromarray(np.roll(noise, 9 * number, 1)).convert(mode) for number in range(count)]


def stack(path, count=4):
    first, *others = frames(count)
    options = dict(format='PNG') if path.suffix == '.apng' else {}
    first.save(path, save_all=True, append_images=others, **options)
    return path


@pytest.mark.parametrize('suffix', ['.gif', '.avif', '.jp2', '.webp', '.jfif', '.tga'])
def test_formats_that_opencv_or_pillow_knows_are_read(suffix, reader, tmp_path):
    (frame,) = frames()
    if suffix == '.avif' and '.avif' not in Image.registered_extensions():
        pytest.skip('this Pillow has no AVIF')
    frame.save(tmp_path / f'a{suffix}', **(dict(format='JPEG') if suffix == '.jfif' else {}))
    pixels, item = reader(tmp_path / f'a{suffix}')
    assert np.abs(pixels[..., ::-1].astype(int) - np.asarray(frame)).mean() < 8
    assert item['data_samples'].ori_shape == (HEIGHT, WIDTH) and item['inputs'].shape[0] == 3


def test_a_format_that_is_missing_here_is_named(reader, tmp_path):
    (tmp_path / 'photo.jpg').write_bytes(b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(99))  # as some phones name it
    with pytest.raises(UsageError, match=r'HEIC .* pip install pillow-heif'):
        reader(tmp_path / 'photo.jpg')


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'LA', 'P', 'PA', '1', 'CMYK', 'I;16'])
def test_an_image_of_pillows_is_read_as_its_file(mode, reader, tmp_path):
    (frame,) = frames()
    if mode == 'I;16':
        values = np.asarray(frame.convert('L')).astype(np.uint16) * 257
        frame = Image.fromarray(values)
    elif mode in ('RGBA', 'LA'):
        frame.putalpha(Image.linear_gradient('L').resize(frame.size))
        frame = frame.convert(mode)
    elif mode == 'PA':
        frame = frame.convert('P').convert('PA')
    else:
        frame = frame.convert(mode)
    assert frame.mode == mode
    path = tmp_path / ('a.tif' if mode in ('PA', 'CMYK') else 'a.png')
    frame.save(path) if mode != 'PA' else frame.convert('RGB').save(path)
    of_file, of_image = reader(path), reader(frame)
    assert np.abs(of_file[0].astype(int) - of_image[0]).max() <= (3 if mode == 'CMYK' else 0)
    assert of_file[1]['inputs'].shape == of_image[1]['inputs'].shape


def test_an_image_of_pillows_is_turned_as_its_file(config, reader, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    frames()[0].save(tmp_path / 'a.png', exif=exif)
    with Image.open(tmp_path / 'a.png') as image:
        assert (reader(image)[0] == reader(tmp_path / 'a.png')[0]).all()
        assert reader(image)[0].shape == (WIDTH, HEIGHT, 3)
        assert (reader(ImageOps.exif_transpose(image))[0] == reader(image)[0]).all()
        as_stored = Config(config.to_dict())
        as_stored.test_dataloader.dataset.pipeline[0].color_type = 'color_ignore_orientation'
        assert ImageReader(as_stored)(image)[0].shape == (HEIGHT, WIDTH, 3)


def test_arrays_in_grey_and_with_transparency_are_read(reader, grey_reader):
    grey = np.asarray(frames(1, 'L')[0])
    color = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    transparent = cv2.cvtColor(color, cv2.COLOR_BGR2BGRA)
    inputs = [reader(array)[1]['inputs'] for array in (color, grey, grey[..., None], transparent)]
    assert inputs[0].shape[0] == 3 and all(torch.equal(inputs[0], other) for other in inputs)
    assert grey_reader(grey)[1]['inputs'].shape[0] == grey_reader(color)[1]['inputs'].shape[0] == 1


@pytest.mark.parametrize(
    'image, words',
    [
        (np.zeros((64, 64), np.uint16), r'\(H, W, 3\), blue first, or \(H, W\), of uint8, not \(64, 64\) of uint16'),
        (np.zeros((64, 64, 3), np.float32), 'of float32'),
        (np.zeros((3, 64, 64), np.uint8), r'not \(3, 64, 64\)'),
        (torch.zeros(64, 64, 3), 'not of type Tensor'),
        (None, 'not of type NoneType'),
        (Image.new('F', (64, 64)), 'values of 32 bits'),
    ],
    ids=['16 bits', 'floats', 'channels first', 'a tensor', 'nothing', 'floats of Pillow'],
)
def test_what_is_no_image_is_named(image, words, reader):
    with pytest.raises(UsageError, match=words):
        reader(image)


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('largest, dark', [(4095, True), (1023, True), (65535, False)])
def test_an_image_that_is_nearly_black_when_it_is_loaded_is_named(suffix, largest, dark, reader, tmp_path, log):
    values = np.random.default_rng(0).integers(0, largest + 1, (HEIGHT, WIDTH)).astype(np.uint16)
    values[0, 0] = largest
    path = tmp_path / f'a{suffix}'
    cv2.imwrite(str(path), values)
    pixels, _ = reader(path)
    assert (pixels == (values >> 8)[..., None]).all()  # as in training
    assert (f'{path} has more than 8 bits and small values' in log.text) == ('nearly black' in log.text) == dark


def test_a_tiff_of_floats_is_named_for_that(reader, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.tif'), np.random.default_rng(0).random((HEIGHT, WIDTH)).astype(np.float32))
    with pytest.raises(UsageError, match='values of 32 bits, which the pipeline does not load: scale it to 8 bits'):
        reader(tmp_path / 'a.tif')


def test_a_dark_photograph_is_not_taken_for_one_of_more_bits(reader, tmp_path, log):
    cv2.imwrite(str(tmp_path / 'a.png'), np.full((HEIGHT, WIDTH, 3), 9, np.uint8))
    cv2.imwrite(str(tmp_path / 'b.png'), np.zeros((HEIGHT, WIDTH, 3), np.uint16))
    reader(tmp_path / 'a.png'), reader(tmp_path / 'b.png')
    assert 'bits' not in log.text


def test_what_is_loaded_with_more_bits_can_be_looked_at():
    values = np.array([[0, 1000, 4000]])
    for array in (values.astype(np.uint16), values.astype(np.float32), (values / 4000).astype(np.float32)):
        assert (to_picture(array) == np.array([[0, 63, 255]])[..., None]).all()
    of_eight_bits = np.array([[0, 60, 200]], np.float32)  # with to_float32
    assert (to_picture(of_eight_bits) == of_eight_bits[..., None]).all()


@pytest.mark.parametrize('suffix', ['.gif', '.webp', '.apng', '.tif'])
def test_pages_and_frames_are_counted_and_read(suffix, reader, tmp_path, log):
    path = stack(tmp_path / f'a{suffix}')
    assert pages_of(path) == [0, 1, 2, 3]
    for page, frame in zip(reader.pages(path, [0, 2, 3]), [frames(4)[number] for number in (0, 2, 3)], strict=True):
        assert np.abs(page[..., ::-1].astype(int) - np.asarray(frame)).mean() < 8
    assert np.abs(reader(path)[0][..., ::-1].astype(int) - np.asarray(frames()[0])).mean() < 8
    assert f'{path} has 4 pages or frames: the first is predicted' in log.text


def test_previews_are_no_pages(tmp_path):
    """Smaller copies in a TIFF, as of maps and scanned slides, and the second image in a photograph of a phone."""
    first, second = frames(2)
    first.save(tmp_path / 'a.jpg', format='MPO', save_all=True, append_images=[second])
    with Image.open(tmp_path / 'a.jpg') as image:
        assert image.n_frames == 2
    first.save(tmp_path / 'a.tif', save_all=True, append_images=[second.resize((32, 24))])
    assert pages_of(tmp_path / 'a.tif') == [0, 1]
    with TiffImagePlugin.AppendingTiffWriter(tmp_path / 'b.tif', True) as file:
        first.save(file, format='TIFF')
        file.newFrame()
        second.save(file, format='TIFF', tiffinfo={254: 1})
    with Image.open(tmp_path / 'b.tif') as image:
        image.seek(1)
        assert image.tag_v2[254] == 1
    assert pages_of(tmp_path / 'a.jpg') == pages_of(tmp_path / 'b.tif') == [0]
    (tmp_path / 'c.gif').write_bytes(b'GIF89a')
    assert pages_of(tmp_path / 'c.gif') == pages_of(tmp_path / 'nowhere.gif') == [0]


def test_pages_of_16_bits_are_loaded_as_in_training(reader, tmp_path, log):
    pages = [np.random.default_rng(seed).integers(0, 4096, (HEIGHT, WIDTH)).astype(np.uint16) for seed in range(3)]
    cv2.imwritemulti(str(tmp_path / 'a.tif'), pages)
    read = list(reader.pages(tmp_path / 'a.tif', pages_of(tmp_path / 'a.tif')))
    assert all((one == (other >> 8)[..., None]).all() for one, other in zip(read, pages, strict=True))
    assert 'nearly black' in log.text


@pytest.mark.parametrize('without', ['absent', 'None'])
def test_the_pipeline_of_the_validation_is_taken_where_there_is_no_test(without, config, reader, tmp_path):
    frames()[0].save(tmp_path / 'a.png')
    changed = Config(config.to_dict())
    changed.val_dataloader.dataset.pipeline[1].scale = (64, 64)
    if without == 'absent':
        changed.pop('test_dataloader')
    else:
        changed.test_dataloader = None
    assert max(ImageReader(changed)(tmp_path / 'a.png')[1]['inputs'].shape) == 64
    changed.test_pipeline = changed.val_dataloader.dataset.pipeline
    changed.val_dataloader = None
    assert max(ImageReader(changed)(tmp_path / 'a.png')[1]['inputs'].shape) == 64
    changed.pop('test_pipeline')
    with pytest.raises(UsageError, match='needs a test_dataloader or a val_dataloader with a pipeline'):
        ImageReader(changed)
