"""``tools/convert_data.py`` as a process."""

import layouts
import pytest
from processes import tool
from tool_runs import succeeded

pytestmark = pytest.mark.slow


def test_the_tool_converts_and_counts(tmp_path):
    layouts.voc(tmp_path / 'in')
    lines = succeeded(tool('convert_data', 'in', 'out', '--to', 'yolo', cwd=tmp_path)).splitlines()
    assert lines[:3] == ['in: voc layout, 2 classes', 'listed: 5 pictures, 10 objects', 'read: 5 pictures, 10 objects']
    assert lines[-1].startswith('written: 5 pictures, 10 objects in ') and lines[-1].endswith('out (yolo layout)')
    lines = succeeded(tool('convert_data', 'out', 'back', '--from', 'yolo', '--to', 'coco', cwd=tmp_path)).splitlines()
    assert lines[0] == 'out: yolo layout, 2 classes'
    assert (tmp_path / 'back' / 'annotations' / 'instances_val.json').is_file()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('in', 'in', '--to', 'coco'), 'exists and is not an empty folder'),
        (('nothing', 'out', '--to', 'coco'), 'no such folder of a data set: nothing'),
        (('in', 'out', '--from', 'yolo', '--to', 'coco'), 'in has no data.yaml'),
    ],
)
def test_bad_input_ends_with_one_sentence_and_status_2(tmp_path, arguments, message):
    layouts.voc(tmp_path / 'in')
    result = tool('convert_data', *arguments, cwd=tmp_path)
    assert result.returncode == 2 and not (tmp_path / 'out').exists()
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
