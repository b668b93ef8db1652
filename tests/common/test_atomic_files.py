"""Files and folders that are complete or not there, and the checks that they can be written."""

import pytest

from shvit_det import UsageError
from shvit_det.common.atomic_files import partial_path, publish, replacing_folder, write_text
from shvit_det.common.output_paths import check_output_file, check_output_folder, may_write, nearest_folder


def fill(folder, text):
    (folder / 'inner').mkdir()
    (folder / 'inner' / 'a').write_text(text)


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / 'set'
    for text in ('one', 'two'):
        with replacing_folder(path) as new:
            fill(new, text)
            assert not path.exists() or (path / 'inner' / 'a').read_text() == 'one'
        assert (path / 'inner' / 'a').read_text() == text and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_a_folder_stays_if_the_new_one_fails(error, tmp_path):
    path = tmp_path / 'set'
    path.mkdir()
    fill(path, 'before')
    with pytest.raises(error), replacing_folder(path) as new:
        (new / 'b').touch()
        raise error
    assert (path / 'inner' / 'a').read_text() == 'before' and list(tmp_path.iterdir()) == [path]


def test_a_folder_stays_if_the_new_one_cannot_get_its_name(tmp_path, monkeypatch):
    path = tmp_path / 'set'
    path.mkdir()
    fill(path, 'before')

    def fail(handle):
        raise OSError(5, 'Input/output error')

    monkeypatch.setattr('os.fsync', fail)
    with pytest.raises(OSError, match='Input/output'), replacing_folder(path) as new:
        fill(new, 'after')
    assert (path / 'inner' / 'a').read_text() == 'before' and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_another_process_made_is_not_replaced_unasked(tmp_path):
    path = tmp_path / 'set'
    with pytest.raises(OSError, match=r'not empty|exists'), replacing_folder(path, replace=False) as new:
        fill(new, 'ours')
        path.mkdir()
        fill(path, 'theirs')
    assert (path / 'inner' / 'a').read_text() == 'theirs' and list(tmp_path.iterdir()) == [path]


def test_names_of_files_that_several_processes_write_differ(tmp_path):
    path = tmp_path / 'a.pth'
    names = {partial_path(path, unique=True) for _ in range(9)}
    assert len(names) == 9 and all(name.suffix == '.part' and name.parent == tmp_path for name in names)
    for name in names:
        name.write_text('content')
        publish(name, path)
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, 'text')
    assert path.read_text() == 'text' and path.stat().st_mode & 0o777 == name_mode(tmp_path)


def name_mode(folder):
    (folder / 'plain').touch()
    return (folder / 'plain').stat().st_mode & 0o777


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / 'file').touch()
    check_output_file(tmp_path / 'file')
    check_output_folder(tmp_path / 'a' / 'b', 'the work dir', '--work-dir')
    assert list((tmp_path / 'a' / 'b').iterdir()) == []
    with pytest.raises(UsageError, match=r'no such folder for --json: .*nowhere'):
        check_output_file(tmp_path / 'nowhere' / 'a.json', '--json')
    with pytest.raises(UsageError, match='it is a folder'):
        check_output_file(tmp_path)
    (tmp_path / 'link').symlink_to(tmp_path / 'file')
    with pytest.raises(UsageError, match=r'file is the file to be read, and would be written over: .*--json'):
        check_output_file(tmp_path / 'file', '--json', [None, 'nowhere', tmp_path / 'link'])
    with pytest.raises(UsageError, match=r'cannot write into the work dir .*\(Not a directory\).*--work-dir'):
        check_output_folder(tmp_path / 'file' / 'a', 'the work dir', '--work-dir')
    assert nearest_folder(tmp_path / 'x' / 'y') == tmp_path and may_write(tmp_path)
    assert not may_write(nearest_folder(tmp_path / 'file' / 'a'))
