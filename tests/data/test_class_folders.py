"""The checks of data in ImageNet's layout."""

import pytest

from shvit_det import UsageError
from shvit_det.data.class_folders import check_listed, class_folders


def test_classes_are_the_folders_in_order_and_images_may_lie_deeper(tmp_path):
    for name in ('n02', 'n01', 'n10'):
        (tmp_path / name / 'part').mkdir(parents=True)
    (tmp_path / 'readme.txt').touch()
    with pytest.raises(UsageError, match=r'the 3 class folders in .* hold no image'):
        class_folders(tmp_path, ['.jpeg'])
    (tmp_path / 'n10' / 'part' / 'a.JPEG').touch()
    assert class_folders(tmp_path, ['.jpeg']) == ('n01', 'n02', 'n10')


@pytest.mark.parametrize(
    'text, words',
    [
        ('a.jpg\n', ['line 1', "'a.jpg'"]),
        ('a.jpg 1\nb.jpg dog\n', ['line 2', "'b.jpg dog'"]),
        ('a.jpg 1\nb c.jpg 3\n', ['line 2', 'label 3', '3 classes', '0 to 2']),
        ('b.jpg 0\n', ['first image', 'not in']),
        ('', ['lists no image']),
    ],
)
def test_a_list_that_does_not_fit_is_named(tmp_path, text, words):
    (tmp_path / 'a.jpg').touch()
    (tmp_path / 'val.txt').write_text('a.jpg 2\nb c.jpg 0\n')
    check_listed(tmp_path / 'val.txt', tmp_path, 3)
    (tmp_path / 'val.txt').write_text(text)
    with pytest.raises(UsageError) as caught:
        check_listed(tmp_path / 'val.txt', tmp_path, 3)
    for word in words:
        assert word in str(caught.value)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r'no image list'):
        check_listed(tmp_path / 'val.txt', tmp_path, 3)
    (tmp_path / 'val.txt').touch()
    with pytest.raises(UsageError, match=r'no image folder .* --data-root'):
        check_listed(tmp_path / 'val.txt', tmp_path / 'val', 3)
