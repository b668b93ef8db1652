"""Pages and tables of measurements: made from records, with which the committed ones agree."""

import importlib.util

import pytest
import timing_records as cases
from paths import ROOT
from processes import tool

from shvit_det import UsageError
from shvit_det.common.measurement_records import save_record

pytestmark = pytest.mark.slow

SPEC = importlib.util.spec_from_file_location('render_benchmarks', ROOT / 'tools' / 'dev' / 'render_benchmarks.py')
rendering = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(rendering)
render_page = rendering.render_page

PAGE = """# Title

<!-- table: detectors -->
old
<!-- end -->

Between.

<!-- table: back.bones-1 others -->
<!-- end -->
After.
"""


@pytest.fixture
def page(tmp_path):
    """A page with two blocks and the records for them."""
    results = tmp_path / 'dev' / 'results'
    results.mkdir(parents=True)
    save_record(cases.detectors_record(), results / 'detectors.json')
    save_record(cases.backbones_record(), results / 'back.bones-1.json')
    others = [cases.backbone('shvit:s1', 20), cases.backbone('shvit:s2', 30)]
    ratios = [cases.ratio('shvit:s2', 'shvit:s1', 1.5)]
    save_record(cases.record(others, threads=2, ratios=ratios), results / 'others.json')
    path = tmp_path / 'benchmarks.md'
    path.write_text(PAGE)
    return path


def results_of(page):
    return page.parent / 'dev' / 'results'


@pytest.mark.parametrize('name', ['benchmarks.md', 'exporting.md'])
def test_the_committed_pages_agree_with_their_records(name):
    for path, text in rendering.rendered_files(ROOT / 'docs' / name):
        assert path.read_text() == text, 'run python tools/dev/render_benchmarks.py'


def test_blocks_are_filled_and_the_rest_stays(page):
    text = render_page(PAGE, results_of(page))
    assert text.startswith('# Title\n\n<!-- table: detectors -->\n\n| model |')
    assert '\nold\n' not in text and '\n\nBetween.\n\n<!-- table: back.bones-1 others -->\n' in text
    assert text.endswith('\n\n<!-- end -->\nAfter.\n')
    line = next(line for line in text.splitlines() if 'results/detectors.md' in line)
    for words in ('AMD EPYC 9R14', '1 thread', 'torch 2.11.0', 'mmdet 3.3.0', 'mmcv 2.1.0', '2025-11-22', '0a1b2c3'):
        assert words in line
    assert render_page(text, results_of(page)) == text


def test_records_stand_side_by_side_in_one_table(page):
    rows = [line.split('|')[1:-1] for line in render_page(PAGE, results_of(page)).splitlines() if line.startswith('|')]
    cells = [[cell.strip() for cell in row] for row in rows]
    whole = {row[0]: row[1:] for row in cells if row[0].endswith('_coco')}
    assert whole['mask_rcnn_shvit_s4_coco'][-2:] == ['1348', '1']
    assert whole['mask-rcnn_r50_fpn_1x_coco'][-2:] == ['2156', '1.60']  # of the whole, not of the backbone alone
    header = next(row for row in cells if 'box AP, published' in row)
    assert header[-4:] == ['ms/image, 1 thread', 'ratio, 1 thread', 'ms/image, 2 threads', 'ratio, 2 threads']
    backbones = {row[0]: row[1:] for row in cells if row[0].startswith('shvit:')}
    assert backbones['shvit:s4'] == ['39.0', '16.0', '7.90', '93.0', '1', '', '']
    assert backbones['shvit:s1'][-4:] == ['30.0', '0.323', '20.0', '1']
    assert backbones['shvit:s2'][-4:] == ['', '', '30.0', '1.50']


def test_a_page_without_blocks_stays(tmp_path):
    assert render_page('# Title\n\nText.\n', tmp_path / 'results') == '# Title\n\nText.\n'


@pytest.mark.parametrize(
    'before, after, words',
    [
        ('table: detectors -->', 'table: nothing -->', ['block nothing', 'nothing.json', 'tools/benchmark.py']),
        ('old\n<!-- end -->', 'old', ['block detectors', 'not closed', 'line 8']),
        ('<!-- end -->\nAfter.', 'After.', ['block back.bones-1 others', 'not closed']),
        ('<!-- table: detectors -->', '', ['<!-- end -->', 'line 5', 'closes no block']),
        ('<!-- table: detectors -->', '<!-- table detectors -->', ['line 3', "'<!-- table detectors -->'"]),
    ],
)
def test_what_does_not_fit_is_named(page, before, after, words):
    assert before in PAGE
    with pytest.raises(UsageError) as caught:
        render_page(PAGE.replace(before, after, 1), results_of(page))
    for word in words:
        assert word in str(caught.value)


def test_a_record_of_the_pages_own_folder_that_no_block_shows_is_named(page):
    own = results_of(page) / page.stem
    own.mkdir()
    save_record(cases.detectors_record(), own / 'forgotten.json')
    page.write_text('# Title\n')
    with pytest.raises(UsageError, match=r'no block shows forgotten\.json'):
        dict(rendering.rendered_files(page))


def test_a_broken_record_is_named(page):
    (results_of(page) / 'detectors.json').write_text('{}')
    with pytest.raises(UsageError, match=r'detectors\.json'):
        dict(rendering.rendered_files(page))


def test_the_tool_checks_and_writes(page):
    result = tool('dev/render_benchmarks', page, '--check', cwd=page.parent)
    assert result.returncode == 1 and page.read_text() == PAGE
    assert len(result.stderr.splitlines()) == 1 and 'differs from its records' in result.stderr
    assert tool('dev/render_benchmarks', page, cwd=page.parent).returncode == 0
    assert '| neck |' in (results_of(page) / 'detectors.md').read_text()
    assert tool('dev/render_benchmarks', page, '--check', cwd=page.parent).returncode == 0
    (results_of(page) / 'detectors.md').write_text('old')
    assert tool('dev/render_benchmarks', page, '--check', cwd=page.parent).returncode == 1
    result = tool('dev/render_benchmarks', 'nowhere.md', cwd=page.parent)
    assert result.returncode == 2 and 'nowhere.md' in result.stderr and 'Traceback' not in result.stderr
