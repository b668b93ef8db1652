"""The report of a test is one page that opens from disk, says what the test has measured, and can be filtered."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from coco_files import coco_content, coco_dataset, write_set
from mmdet.evaluation import CocoMetric
from paths import MASK_RCNN, ROOT
from processes import tool
from tool_runs import succeeded

from shvit_det.common.errors import RunError, UsageError
from shvit_det.evaluation.error_pictures import MOST_PICTURES, choose_pictures
from shvit_det.evaluation.evaluate import evaluate
from shvit_det.evaluation.html_page import chart, thinned
from shvit_det.evaluation.report import record_results, write_report

NAMES = ('cat', '<b>&"dog"', 'fox')
PARTS = ('scores', 'errors', 'curves', 'classes', 'confusions', 'sizes', 'calibration', 'pictures')
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
LIMIT = 120  # seconds for a browser
CLICKS = """
<script>
const gallery = document.querySelector('.gallery');
const shown = () => [...gallery.querySelectorAll('.picture:not([hidden])')].length;
const seen = { all: shown(), status: gallery.querySelector('[role=status]').textContent };
gallery.querySelector('button[data-kind=missed]').click();
seen.missed = shown();
seen.kinds = [...new Set([...gallery.querySelectorAll('li:not([hidden])')].map((item) => item.dataset.kind))];
seen.pressed = gallery.querySelector('[aria-pressed=true]').dataset.kind;
const select = gallery.querySelector('select');
select.value = '0';
select.dispatchEvent(new Event('change'));
seen.missed_of_class = shown();
document.dispatchEvent(new KeyboardEvent('keydown', { key: 'j' }));
seen.focused = document.activeElement.className;
const column = document.querySelectorAll('table.sorted th button')[1];
const counts = () => [...document.querySelectorAll('table.sorted tbody tr')].map((row) => +row.cells[1].textContent);
column.click();
seen.rising = counts();
column.click();
seen.falling = counts();
seen.overflow = document.documentElement.scrollWidth - innerWidth;
parent.postMessage(JSON.stringify(seen), '*');
</script>
</body>"""

FRAME = """<title></title>
<script>addEventListener('message', (event) => {{ document.title = event.data; }});</script>
<iframe src="page.html" width="{width}" height="800"></iframe>"""


class Page(HTMLParser):
    """What a page has: tags with their attributes, text, and whether every tag is closed."""

    VOID = ('meta', 'link', 'img', 'path', 'polyline', 'circle')

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ''
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ('style', 'script'):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def check_page(path):
    """Check what holds for every report, and return it."""
    page = Page(path.read_text())
    ids = [attributes['id'] for _, attributes in page.tags if 'id' in attributes]
    assert len(ids) == len(set(ids))
    assert {link['href'][1:] for link in page.all('a')} <= set(ids)
    assert all(each['src'].startswith('data:image/jpeg;base64,') and each['alt'] for each in page.all('img'))
    assert '://' not in path.read_text()
    return page


def recorded(folder, results, **options):
    """Let a COCO metric score results on a tiny data set, and return what a report is made of."""
    content = coco_content()
    for category, name in zip(content['categories'], NAMES, strict=True):
        category['name'] = name
    file = write_set(folder, content)
    dataset = coco_dataset(
        file, metainfo=dict(classes=NAMES), test_mode=True, pipeline=[dict(type='LoadImageFromFile')]
    )
    metric = CocoMetric(ann_file=str(file), **options)
    metric.dataset_meta = dataset.metainfo
    scored = record_results(SimpleNamespace(metrics=[metric]), dataset)
    for index, result in enumerate(results):
        info = dataset.get_data_info(index)
        full = (
            dict(img_id=info['img_id'], bboxes=np.zeros((0, 4)), labels=np.zeros(0, int), scores=np.zeros(0)) | result
        )
        metric.results.append((dict(width=40, height=30, img_id=info['img_id']), full | result))
    metric.compute_metrics(metric.results)
    return scored


FOUND = [
    dict(bboxes=np.array([[2.0, 3, 14, 13], [20, 10, 30, 20]]), labels=np.array([0, 1]), scores=np.array([0.6, 0.8])),
    dict(bboxes=np.array([[5.0, 3, 17, 16]]), labels=np.array([1]), scores=np.array([0.7])),
    {},
    {},
]


def test_a_page_has_all_parts_and_escapes_names(tmp_path):
    (tmp_path / 'page').mkdir()
    path = write_report(recorded(tmp_path, FOUND), tmp_path / 'page', 'a<b.py', 'a.pth')
    page = check_page(path)
    assert path.name == 'index.html' and [each.name for each in path.parent.iterdir()] == ['index.html']
    assert all(f'id="{part}0"' in path.read_text() for part in PARTS)
    assert '4 images with 5 objects of 3 classes' in page.text and 'a<b.py' in page.text
    assert NAMES[1] in page.text and 'class: <b>&"dog" 0.70 at cat, IoU 1.00' in page.text and 'missed: ' in page.text
    assert len(page.all('article')) == 3 and len(page.all('img')) == 6  # the fourth image has neither object nor error
    assert 'Data sets' not in path.read_text()


def test_a_page_of_a_test_that_found_nothing(tmp_path):
    path = write_report(recorded(tmp_path, [{}] * 4), tmp_path, 'a.py', 'a.pth')
    page = check_page(path)
    assert 'No detection has found an object' in page.text and 'There is no detection.' in page.text
    assert page.text.count('missed: ') == 5


def test_a_page_without_errors(tmp_path):
    boxes = {}
    for each in coco_content()['annotations']:
        left, top, width, height = each['bbox']
        if not each['iscrowd']:
            boxes.setdefault(each['image_id'], []).append(
                ((left, top, left + width, top + height), {1: 0, 2: 1, 4: 2}[each['category_id']])
            )
    found = [
        dict(
            bboxes=np.array([box for box, _ in boxes.get(image, [])], float).reshape(-1, 4),
            labels=np.array([label for _, label in boxes.get(image, [])], int),
            scores=np.full(len(boxes.get(image, [])), 0.9),
        )
        for image in (3, 5, 8, 9)
    ]
    page = check_page(write_report(recorded(tmp_path, found), tmp_path, 'a.py', 'a.pth'))
    assert 'There is no error at a score of 0.90.' in page.text and not page.all('article')


def test_a_disk_that_cannot_be_written_ends_the_run_with_a_sentence(tmp_path):
    scored = recorded(tmp_path, FOUND)
    with pytest.raises(RunError, match=r'^cannot write .*index\.html: No such file or directory$'):
        write_report(scored, tmp_path / 'nowhere', 'a.py', 'a.pth')


def test_other_metrics_are_left_alone(tmp_path):
    proposals = CocoMetric(ann_file=str(write_set(tmp_path)), metric='proposal')
    assert record_results(SimpleNamespace(metrics=[proposals, object()]), None) == []
    assert 'compute_metrics' not in vars(proposals)


def test_pictures_are_chosen_for_every_kind_and_class():
    items = {image: [('background', (0,), '')] * 9 for image in range(60)}
    items |= {70: [('missed', (1,), '')], 71: [('class', (0, 2), '')]}
    chosen = choose_pictures(items, 3)
    assert {70, 71} <= set(chosen) and len(chosen) <= MOST_PICTURES
    assert chosen[-2:] == [70, 71]  # the worst come first


def test_long_curves_are_thinned_from_end_to_end():
    values = np.linspace(0, 1, 10_000)
    points = thinned(values, values)
    assert len(points) <= 300 and points[0] == (0, 0) and points[-1] == (1, 1)
    assert thinned([], []) == [] and thinned([0.5], [0.5]) == [(0.5, 0.5)] and len(thinned(values[:300], values)) == 300
    assert chart({'a < b': ([0, 1], [0, 1])}, 't', 'x', 'y').count('a &lt; b') == 1


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(format_only=True), '--report needs scores, and --format-only computes none'),
        (dict(metrics=['proposal']), '--report needs scores of boxes or masks: add --eval bbox'),
        (dict(cfg_options={'test_evaluator.type': 'VOCMetric'}), '--report needs a CocoMetric in test_evaluator'),
    ],
)
def test_what_a_report_cannot_be_made_of_is_a_mistake(trained_once, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    checkpoint = str(trained_once / 'run' / 'epoch_2.pth')
    with pytest.raises(UsageError, match=re.escape(message)):
        evaluate(str(MASK_RCNN), checkpoint, report='report', work_dir='work', **options)
    assert not list(tmp_path.iterdir())


def test_a_classifier_has_no_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r'--report needs a CocoMetric in test_evaluator, and this is a classifier'):
        evaluate(str(ROOT / 'configs' / 'shvit_s1_imagenet.py'), 'none.pth', report='report')
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def report(trained_once, tmp_path_factory):
    """The report of the tiny Mask R-CNN, and what the tool printed."""
    folder = tmp_path_factory.mktemp('report')
    result = tool('test', MASK_RCNN, trained_once / 'run' / 'epoch_2.pth', '--eval', 'bbox', 'segm', '--report', 'page',
                  '--data-root', trained_once / 'data' / 'sample', '--work-dir', 'work', '--cfg-options',
                  'model.test_cfg.rcnn.score_thr=0.0', cwd=folder)  # fmt: skip
    return folder / 'page' / 'index.html', succeeded(result)


@pytest.mark.slow
def test_the_tool_writes_a_page_with_the_scores_that_it_prints(report):
    path, output = report
    assert output.splitlines()[-1].endswith('Report: page/index.html')
    page = check_page(path)
    printed = [line.split()[1:] for line in output.splitlines() if line.startswith(('bbox ', 'segm '))]
    table = re.search(r'Average precision">(.*?)</table>', path.read_text(), re.DOTALL)[1]
    cells = [re.findall(r'<td>(.*?)</td>', row) for row in table.split('<tr>')[2:]]
    assert [[cell.replace('\N{EN DASH}', 'none') for cell in row] for row in cells] == printed
    assert len(page.all('img')) == 2 * len(page.all('article')) > 0


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_a_mistake(trained_once, tmp_path):
    (tmp_path / 'page').touch()
    checkpoint = trained_once / 'run' / 'epoch_2.pth'
    options = ('--report', 'page', '--data-root', trained_once / 'data' / 'sample', '--work-dir', 'work')
    result = tool('test', MASK_RCNN, checkpoint, *options, cwd=tmp_path)
    assert result.returncode == 2
    assert 'cannot write into the folder of the report page' in result.stderr.splitlines()[-1]
    assert [each.name for each in tmp_path.iterdir()] == ['page']


@pytest.mark.slow
@pytest.mark.parametrize('width', [320, 1280])
def test_a_browser_filters_and_sorts_without_an_error(report, tmp_path, width):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip('no Chromium is installed: apt-get install chromium')
    page = report[0].read_text()
    (tmp_path / 'page.html').write_text(page.replace('</body>', CLICKS))
    # a window of Chromium is not narrower than 500 pixels, but a frame is
    frame = tmp_path / 'frame.html'
    frame.write_text(FRAME.format(width=width))
    command = [browser, '--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking',
               '--enable-logging=stderr', f'--user-data-dir={tmp_path / "profile"}', '--virtual-time-budget=5000',
               '--dump-dom', frame.as_uri()]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    seen = json.loads(re.search(r'<title>(.*?)</title>', result.stdout)[1])
    num_pictures = page.count('<article')
    assert seen['status'] == f'{num_pictures} of {num_pictures} pictures' and seen['all'] == num_pictures
    assert seen['kinds'] == ['missed'] and seen['pressed'] == 'missed' and 0 < seen['missed'] <= num_pictures
    assert seen['missed_of_class'] <= seen['missed'] and seen['focused'] == 'picture'
    assert seen['rising'] == sorted(seen['rising']) and seen['falling'] == sorted(seen['falling'], reverse=True)
    assert seen['overflow'] <= 0 and 'CONSOLE' not in result.stderr
