"""Image files that are complete, and the faults of those that are not."""

import numpy as np
import pytest
from PIL import Image

from shvit_det.common.image_files import exif_orientation, find_fault, is_truncated, pages_of


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.bmp', '.webp', '.tif', '.ppm'])
def test_a_truncated_image_is_noticed_in_every_format(suffix, tmp_path):
    path = tmp_path / f'image{suffix}'
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    assert find_fault(path) is None and not is_truncated(path)
    content = path.read_bytes()
    path.write_bytes(content + b'an appended video' * 50)  # phones do so
    assert find_fault(path) is None and not is_truncated(path)
    path.write_bytes(content[: len(content) // 2])
    fault = find_fault(path)
    assert fault.kind in ('truncated', 'unreadable') and fault.message.startswith('cannot be decoded: ')
    assert is_truncated(path) == (suffix in ('.jpg', '.png'))


def test_files_that_are_no_images_have_faults_of_their_own(tmp_path):
    (tmp_path / 'empty.png').touch()
    (tmp_path / 'text.jpg').write_text('no image')
    (tmp_path / 'page.png').write_text('<!DOCTYPE html><html>404</html>')
    (tmp_path / 'drawing.png').write_text('<?xml version="1.0"?><svg></svg>')
    found = {name: find_fault(tmp_path / name) for name in ('empty.png', 'text.jpg', 'nowhere.jpg', '.', 'page.png')}
    kinds = ['empty', 'unknown_format', 'missing', 'unreadable', 'unreadable']
    assert [fault.kind for fault in found.values()] == kinds and 'is a web page' in found['page.png'].message
    assert find_fault(tmp_path / 'drawing.png').kind == 'unknown_format'
    assert found['empty.png'].message == 'has zero bytes' and found['.'].message == 'is no file'


def test_a_large_image_is_no_fault(tmp_path, monkeypatch):
    """Pillow refuses images of more than 179 million pixels, as of microscopes, and warns of half of that."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    image.save(tmp_path / 'a.tif', save_all=True, append_images=[image])
    assert find_fault(tmp_path / 'a.tif') is None and pages_of(tmp_path / 'a.tif') == [0, 1]
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize('suffix, expected', [('.jpg', 6), ('.png', 6), ('.tif', 1), ('.webp', 6)])
def test_the_orientation_is_that_of_the_exif(suffix, expected, tmp_path):
    path = tmp_path / f'image{suffix}'
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((8, 4, 3), np.uint8)).save(path, exif=exif)
    with Image.open(path) as image:
        assert exif_orientation(image) == expected
