"""The page of benchmarks: filled from records, and the committed one agrees with its records."""

import pytest
import timing_records as made
from paths import ROOT
from processes import tool

from shvit_det import UsageError
from shvit_det.timing.page import page_is_current, render_page, write_page
from shvit_det.timing.record import write_record

pytestmark = pytest.mark.slow

PAGE = """# Title

<!-- table: detectors -->
old
<!-- end -->

Between.

<!-- table: back.bones-1 -->
<!-- end -->
After.
"""


@pytest.fixture
def page(tmp_path):
    """A page with two blocks and the records for them."""
    results = tmp_path / 'results'
    results.mkdir()
    write_record(made.detectors_record(), results / 'detectors.json')
    write_record(made.backbones_record(), results / 'back.bones-1.json')
    path = tmp_path / 'benchmarks.md'
    path.write_text(PAGE)
    return path


@pytest.mark.parametrize('name', ['benchmarks.md', 'exporting.md'])
def test_the_committed_pages_agree_with_their_records(name):
    assert page_is_current(ROOT / 'docs' / name), 'run python tools/dev/render_benchmarks.py'


def test_blocks_are_filled_and_the_rest_stays(page):
    text = render_page(PAGE, page.parent / 'results')
    assert text.startswith('# Title\n\n<!-- table: detectors -->\n\n```sh\npython tools/benchmark.py configs/')
    assert '\nold\n' not in text and '\n\nBetween.\n\n<!-- table: back.bones-1 -->\n' in text
    assert text.endswith('\n\n<!-- end -->\nAfter.\n')
    line = text.splitlines()[8]
    for words in ('AMD EPYC 9R14', '1 thread', 'torch 2.11.0', 'mmdet 3.3.0', 'mmcv 2.1.0', '2025-11-22', '0a1b2c3'):
        assert words in line
    assert '| mask_rcnn_shvit_s4_coco |' in text and '| shvit:s4 |' in text
    assert render_page(text, page.parent / 'results') == text


def test_a_page_without_blocks_and_records_stays(tmp_path):
    assert render_page('# Title\n\nText.\n', tmp_path / 'results') == '# Title\n\nText.\n'


@pytest.mark.parametrize(
    'before, after, words',
    [
        ('table: detectors -->', 'table: nothing -->', ['block nothing', 'nothing.json', 'tools/benchmark.py']),
        ('old\n<!-- end -->', 'old', ['block detectors', 'not closed', 'line 8']),
        ('<!-- end -->\nAfter.', 'After.', ['block back.bones-1', 'not closed']),
        ('<!-- table: detectors -->', '', ['<!-- end -->', 'line 5', 'closes no block']),
        ('<!-- table: detectors -->', '<!-- table detectors -->', ['line 3', "'<!-- table detectors -->'"]),
        ('<!-- table: detectors -->\nold\n<!-- end -->', '', ['detectors.json', 'no block']),
    ],
)
def test_what_does_not_fit_is_named(page, before, after, words):
    assert before in PAGE
    with pytest.raises(UsageError) as caught:
        render_page(PAGE.replace(before, after, 1), page.parent / 'results')
    for word in words:
        assert word in str(caught.value)


def test_a_broken_record_is_named(page):
    (page.parent / 'results' / 'detectors.json').write_text('{}')
    with pytest.raises(UsageError, match=r'detectors\.json'):
        write_page(page)
    assert page.read_text() == PAGE


def test_the_tool_checks_and_writes(page):
    result = tool('dev/render_benchmarks', page, '--check', cwd=page.parent)
    assert result.returncode == 1 and page.read_text() == PAGE
    assert len(result.stderr.splitlines()) == 1 and 'differs from its records' in result.stderr
    assert tool('dev/render_benchmarks', page, cwd=page.parent).returncode == 0
    assert tool('dev/render_benchmarks', page, '--check', cwd=page.parent).returncode == 0
    result = tool('dev/render_benchmarks', 'nowhere.md', cwd=page.parent)
    assert result.returncode == 2 and 'nowhere.md' in result.stderr and 'Traceback' not in result.stderr
