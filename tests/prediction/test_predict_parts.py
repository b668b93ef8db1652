"""The parts of prediction by themselves: what is named, how it is drawn, the stored config, progress."""

import io
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from shvit_det import UsageError
from shvit_det.checkpoint.stored_config import parse_config, stored_config
from shvit_det.common.durations import duration
from shvit_det.configuration.detection import Detection
from shvit_det.prediction import drawing
from shvit_det.prediction.detector_loading import check_types, config_of_checkpoint
from shvit_det.prediction.drawing import Style, class_colors, draw, label_image
from shvit_det.prediction.inputs import Input, find_inputs, output_names
from shvit_det.prediction.progress import Progress

RED = (200, 30, 30)


@pytest.fixture
def files(tmp_path, monkeypatch):
    names = ['a/x.jpg', 'a/x.png', 'a/y.JPG', 'a/clip.mp4', 'a/notes.txt', 'a/.hidden.jpg', 'a/deep/x.jpg', 'b/x.jpg',
             'b/[1].jpg']  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    'named, found',
    [
        (['a'], ['a/clip.mp4', 'a/x.jpg', 'a/x.png', 'a/y.JPG']),
        (['a/*.jpg'], ['a/x.jpg']),
        (['**/x.*'], ['a/deep/x.jpg', 'a/x.jpg', 'a/x.png', 'b/x.jpg']),
        (['a/notes.txt'], ['a/notes.txt']),
        (['b/[1].jpg'], ['b/[1].jpg']),
        (['b/x.jpg', 'b', 'a/../b/x.jpg'], ['b/x.jpg', 'b/[1].jpg']),
        (['https://e.org/a.jpg', 'b/x.jpg', 'https://e.org/a.jpg'], ['https://e.org/a.jpg', 'b/x.jpg']),
    ],
    ids=['folder', 'pattern', 'any depth', 'any ending', 'brackets', 'each once', 'URLs'],
)
def test_what_is_named_is_found(named, found, files):
    assert [item.source for item in find_inputs(named)] == found


def test_what_is_left_out_is_counted(files, log):
    for name in ('a/photo.HEIC', 'a/anim.gif', 'a/raw.NEF', 'a/more.txt', 'a/Makefile'):
        (files / name).touch()
    found = [item.path.name for item in find_inputs(['a'])]
    assert found == ['anim.gif', 'clip.mp4', 'photo.HEIC', 'x.jpg', 'x.png', 'y.JPG']
    others = "1 .nef, 2 .txt, 1 without an ending, and what is in its folders, for which you can name 'a/**/*'"
    assert f'a: not predicted: {others}' in log.text
    log.clear()
    assert len(find_inputs(['a/*'])) == 6 and f'a/*: not predicted: {others}' in log.text
    log.clear()
    found = [item.path.name for item in find_inputs(['a/*.NEF', '**/*.txt'])]
    assert found == ['raw.NEF', 'more.txt', 'notes.txt'] and log.text == ''
    for name in ('~no_such_user/a.jpg', 'x' * 300, 'a\0b'):
        with pytest.raises(UsageError, match='no such file or folder: '):
            find_inputs([name])
    with pytest.raises(UsageError, match=r'no picture or video matches a/\[nm\]\*\.\[t\]xt; it has 2 .txt'):
        find_inputs(['a/[nm]*.[t]xt'])


def test_videos_are_told_by_their_ending():
    videos = {name: Input(name).is_video for name in ('a.MP4', 'https://e.org/a.mov?x=1.jpg', 'a.jpg', 'mp4')}
    assert list(videos.values()) == [True, True, False, False]


@pytest.mark.parametrize(
    'sources, names',
    [
        (['a/x.jpg', 'a/y.bmp', 'v.avi'], ['x.jpg', 'y.png', 'v.mp4']),
        (['train/x.jpg', 'val/x.jpg'], ['train-x.jpg', 'val-x.jpg']),
        (['a/x.png', 'a/x.bmp'], ['a-x.png', 'a-x-2.png']),
        (['1/a/x.jpg', '2/a/X.jpg', 'a-x-2.jpg'], ['a-x.jpg', 'a-X-3.jpg', 'a-x-2.jpg']),
        (['https://e.org/a%2Fb.php', 'https://e.org/', 'https://e.org/v1.2'], ['b.jpg', 'picture.jpg', 'v1.jpg']),
    ],
    ids=['endings', 'two folders', 'two formats', 'capitals', 'URLs'],
)
def test_outputs_have_names_of_their_own(sources, names):
    assert output_names([Input(source) for source in sources]) == names


@given(
    st.lists(st.from_regex(r'([ab]/){0,2}[xX](-[23])?\.(jpg|png|bmp|mp4)', fullmatch=True), unique=True, max_size=12)
)
def test_no_two_outputs_share_a_name(sources):
    names = output_names([Input(source) for source in sources])
    assert len({name.lower() for name in names}) == len(sources)
    assert all(Path(name).name == name for name in names)


def objects(count, height, width, seed=0):
    random = np.random.default_rng(seed)
    size = random.uniform(0.05, 0.3, (count, 2)) * (width, height)
    corner = random.uniform(-0.05, 1, (count, 2)) * ((width, height) - size)  # some reach out of the picture
    boxes = np.concatenate([corner, corner + size], axis=1)
    rows, columns = np.mgrid[:height, :width]
    masks = [(rows >= y1) & (rows < y2) & (columns >= x1) & (columns < x2) for x1, y1, x2, y2 in boxes]
    masks = np.array(masks, bool).reshape(count, height, width)
    return boxes, random.integers(0, 3, count), random.uniform(0, 1, count), masks


@pytest.mark.parametrize('count', [0, 1, 100])
@pytest.mark.parametrize('size', [(1, 1), (48, 64), (480, 640), (30, 2000)])
def test_drawing_takes_any_size_and_number(count, size):
    picture = np.full((*size, 3), 90, np.uint8)
    boxes, labels, scores, masks = objects(count, *size)
    factor = max(1, math.ceil(400 / max(size)))
    for drawn in (
        draw(picture, boxes, labels, scores, masks, ['a', 'b'], class_colors(None, 3)),
        draw(picture, boxes, labels, scores, None, ['a', 'b', 'c'], class_colors(None, 3)),
    ):
        assert drawn.shape == (size[0] * factor, size[1] * factor, 3) and drawn.dtype == np.uint8
        assert (drawn == 90).all() == (count == 0)
    assert (picture == 90).all()


def one(picture, box, score=0.9, mask=None, names=('disc',), color=RED):
    masks = None if mask is None else mask[None]
    return draw(picture, np.array([box], float), np.array([0]), np.array([score]), masks, names, [color])


def test_a_mask_tints_its_pixels_and_no_others():
    picture = np.full((480, 640, 3), 100, np.uint8)
    mask = np.zeros((480, 640), bool)
    mask[200:300, 200:400] = True
    drawn = one(picture, (200, 200, 400, 300), mask=mask)
    assert (drawn[250, 300] == [int(0.55 * 100 + 0.45 * value) for value in reversed(RED)]).all()
    changed = (drawn != 100).any(2)
    assert changed[200:300, 200:400].all() and not changed[310:].any() and not changed[:, 410:].any()


def test_the_higher_score_lies_on_top_and_is_not_mixed():
    picture = np.full((480, 640, 3), 100, np.uint8)
    masks = np.ones((2, 480, 640), bool)
    boxes = np.array([(0, 0, 640, 480)] * 2, float)
    for scores, top in (([0.9, 0.5], (200, 0, 0)), ([0.5, 0.9], (0, 0, 200))):
        drawn = draw(picture, boxes, np.array([0, 1]), np.array(scores), masks, ['a', 'b'], [(200, 0, 0), (0, 0, 200)])
        assert (drawn[240, 320] == [int(0.55 * 100 + 0.45 * value) for value in reversed(top)]).all()


@pytest.mark.parametrize('box', [(0, 0, 60, 40), (600, 0, 640, 20), (0, 470, 30, 480), (620, 460, 640, 480)])
def test_a_label_is_whole_and_within_the_picture_in_every_corner(box):
    picture = np.full((480, 640, 3), 100, np.uint8)
    drawn = one(picture, box)
    letters = label_image('disc 0.90', Style.of(480, 640, np.array([box], float)).font)
    drawn_white = (drawn > 190).all(2).astype(np.float32)
    wanted = (letters > 200).astype(np.float32)  # white on dark red
    assert cv2.matchTemplate(drawn_white, wanted, cv2.TM_CCORR).max() > wanted.sum() - 0.5 > 10


def test_letters_are_black_on_bright_and_white_on_dark_colours():
    picture = np.full((480, 640, 3), 100, np.uint8)
    for color, extreme in (((255, 255, 0), 0), ((0, 0, 120), 255)):
        drawn = one(picture, (200, 200, 400, 300), color=color)
        assert (abs(drawn.astype(int) - extreme) < 60).all(2).sum() > 30


def test_labels_do_not_cover_each_other():
    """Each of many objects at one place has its label somewhere else, or none."""
    picture = np.full((480, 640, 3), 100, np.uint8)
    boxes = np.array([(300, 200, 340, 240)] * 40, float)
    scores = np.linspace(0.3, 0.9, 40)
    colors = [(255 - index, 0, index) for index in range(40)]
    drawn = draw(picture, boxes, np.arange(40), scores, None, [f'class{index:02}' for index in range(40)], colors)
    style = Style.of(480, 640, boxes)
    shown = 0
    for index in range(40):
        ground = (drawn == tuple(reversed(colors[index]))).all(2)
        least = min((label_image(t, style.font) == 0).sum() for t in (f'{scores[index]:.2f}', f'class{index:02} 0.55'))
        if ground.sum() > 150:
            shown += 1
            assert ground.sum() >= 0.9 * least
    assert 3 <= shown < 40


def test_lines_and_letters_grow_with_the_picture_and_shrink_in_a_crowd():
    none = np.zeros((0, 4))
    assert Style.of(480, 640, none) == Style(2, 15)
    small, large = Style.of(300, 400, none), Style.of(3000, 4000, none)
    assert small.font < 15 < large.font < 15 * 3000 / 480 and small.line <= 2 < large.line
    crowd = objects(100, 480, 640)[0]
    assert Style.of(480, 640, crowd).font < 15
    assert Style.of(64, 64, crowd / 10).font >= 9 and Style.of(64, 64, crowd / 10).line == 1


def test_names_in_other_scripts_are_written():
    picture = np.full((480, 640, 3), 100, np.uint8)
    box = (200, 200, 400, 300)
    assert (one(picture, box, names=('Žlutý λ',)) != one(picture, box, names=('Ω é',))).any()


CHINESE = '\N{CJK UNIFIED IDEOGRAPH-5706}\N{CJK UNIFIED IDEOGRAPH-76D8}'


def font_with(path, letters):
    """Write a font in which each letter is a filled square, and return its path."""
    names = ['.notdef', *(f'uni{ord(letter):04X}' for letter in letters)]
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable(dict(familyName=path.stem, styleName='Regular'))
    font.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    font.setupPost()
    font.save(path)
    return str(path)


@pytest.fixture
def fonts(monkeypatch):
    """Set which fonts are installed on this machine."""
    caches = (drawing.installed_fonts, drawing.font_file, drawing.shown_names, drawing.label_image)

    def fonts(*files):
        monkeypatch.setattr(drawing, 'findSystemFonts', lambda: list(files))
        for cached in caches:
            cached.cache_clear()

    yield fonts
    for cached in caches:
        cached.cache_clear()


def test_a_name_that_no_font_has_is_drawn_as_its_number(fonts, tmp_path, log):
    fonts(font_with(tmp_path / 'other.ttf', CHINESE[0]), str(tmp_path / 'gone.ttf'))
    picture, box = np.full((480, 640, 3), 100, np.uint8), (200, 200, 400, 300)
    assert (one(picture, box, names=(CHINESE, 'b')) == one(picture, box, names=())).all()
    assert f'no font here has the letters of 1 of the 2 class names, {CHINESE!r} for instance' in log.text
    assert 'drawn as "class 0"' in log.text


def test_a_name_is_drawn_by_an_installed_font_that_has_its_letters(fonts, tmp_path, log):
    fonts(font_with(tmp_path / 'Aa-Bold.ttf', CHINESE), font_with(tmp_path / 'Some-Regular.ttf', CHINESE))
    assert drawing.font_file(CHINESE).name == 'Some-Regular.ttf'
    mixed, alone, score = (label_image(text, 20) for text in (f'{CHINESE} 0.9', CHINESE, ' 0.9'))
    assert mixed.shape[1] == pytest.approx(alone.shape[1] + score.shape[1] - 2 * 4, abs=1)  # the margin is 4
    assert (mixed[:, : 4 + 32] == 255).sum() == (alone == 255).sum() == pytest.approx(2 * 14 * 14, rel=0.15)
    assert (mixed[:, 4 + 32 :] > 128).sum() == pytest.approx((score > 128).sum(), rel=0.1)
    assert 'no font' not in log.text


def test_colours_are_the_palettes_or_differ():
    assert class_colors([(1, 2, 3), (4, 5, 6), (7, 8, 9)], 2) == ((1, 2, 3), (4, 5, 6))
    for palette in (None, 'random', [(1, 2, 3)], [('a', 'b', 'c')] * 80):
        colors = np.array(class_colors(palette, 80), int)
        distances = np.abs(colors[:, None] - colors[None]).sum(2) + 1000 * np.eye(80, dtype=int)
        assert distances.min() > 0
        assert distances[:10, :10].min() > 60


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.sampled_from(['a', 'type', 'b_c', '0']), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(['model', 'b', 'c_d']), PLAIN, max_size=3))
def test_a_config_is_read_as_it_was(values):
    text = '\n'.join(f'{name} = {value!r}' for name, value in values.items())
    assert parse_config(text) == values


def test_what_mmengine_writes_is_read_as_it_was():
    path = Path(__file__).parents[1] / 'data' / 'tiny_mask_rcnn.py'
    config = Config.fromfile(path)
    config.extra = {'0': (1, -2.5), 'a-b': [None, float('inf'), -float('inf')], 'deep': dict(x=dict())}
    read = stored_config(dict(meta=dict(cfg=config.pretty_text)))
    assert read == config.to_dict()
    assert stored_config(dict(meta=dict(cfg=''))) is None and stored_config([]) is None


TEXT = st.text(max_size=12) | st.text(alphabet='\'"\\(){}[]$%#_ \n\t,:=rbfé', max_size=12)


@pytest.fixture(scope='module')
def _registered():
    Detection().register()


@pytest.mark.usefixtures('_registered')
@settings(max_examples=40)  # mmengine formats each
@given(st.lists(TEXT, min_size=1, max_size=3), TEXT)
def test_text_in_a_config_goes_through_a_checkpoint(names, folder):
    """Whatever it looks like: as mmengine writes it, as it is read again, and as it is judged."""
    dataset = dict(
        type='CocoDataset', data_root=folder, ann_file=f'{folder}(1)__x', metainfo=dict(classes=tuple(names))
    )
    step = dict(type='LoadImageFromFile', backend_args=dict(path_mapping={'x': folder}))
    model = dict(type='RetinaNet', init_cfg=dict(type='SHViTPretrained', checkpoint=folder), names=names)
    loader = dict(dataset=dict(type='RepeatDataset', dataset=dict(dataset, pipeline=[step])))
    written = Config(dict(model=model, test_dataloader=loader, data_root=folder))
    read = config_of_checkpoint(dict(meta=dict(cfg=written.pretty_text)), 'a.pth', None)
    assert read.to_dict() == written.to_dict()
    check_types(read, 'a.pth')


@pytest.mark.usefixtures('_registered')
@pytest.mark.parametrize('place', ['test_dataloader', 'val_dataloader', 'test_pipeline'])
def test_whatever_new_images_are_read_by_is_judged(place):
    steps = [dict(type='os.system', command='true')]
    part = steps if place == 'test_pipeline' else dict(dataset=dict(type='CocoDataset', pipeline=steps))
    config = Config({'model': dict(type='RetinaNet'), 'test_dataloader': None, 'val_dataloader': None, place: part})
    with pytest.raises(UsageError, match=r"names the type 'os.system'"):
        check_types(config, 'a.pth')


@pytest.mark.parametrize(
    'text',
    ['import os', 'a = b', 'a = open("x")', 'a = dict(**b)', 'a = [x for x in (1,)]', 'a.b = 1', 'a = dict(1)', 'a = (',
     'a = dict({}, b=1)', 'a = dict({**b})', 'a = -b', 'a = f"{1}"', 'a = dict(x=lambda: 1)', 'a = {**{}}',
     'a, b = 1, 2'],
)  # fmt: skip
def test_a_config_that_is_more_than_data_is_refused(text):
    with pytest.raises(UsageError, match='is not run'):
        parse_config(text)


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


def test_progress_tells_the_time_that_is_left():
    now = [0.0]
    stream = Stream(terminal=False)
    progress = Progress(20, 'pictures', stream, lambda: now[0])
    for _ in range(8):
        now[0] += 3
        progress.advance()
    assert stream.getvalue().splitlines() == [
        '4 of 20 pictures, 3.0 s each, 48 s left',
        '8 of 20 pictures, 3.0 s each, 36 s left',
    ]
    stream = Stream(terminal=True)
    progress = Progress(None, 'frames', stream, lambda: now[0])
    for _ in range(2):
        now[0] += 0.25
        progress.advance()
    progress.print('failed: a.jpg')
    lines = stream.getvalue().split('\r\033[K')
    assert lines == ['', '1 frames, 4.0 a second', '2 frames, 4.0 a second', 'failed: a.jpg\n']
    assert [duration(seconds) for seconds in (0.4, 89, 600, 5400)] == ['0 s', '89 s', '10 min', '1.5 h']
