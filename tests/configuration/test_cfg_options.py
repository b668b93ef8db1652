"""``--cfg-options`` of all tools: what is typed is what arrives, and what a message suggests can be pasted."""

import argparse
import re
import shlex
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mmengine.config import Config, DictAction
from paths import ROOT
from processes import tool

from shvit_det import UsageError
from shvit_det.commands import COMMANDS
from shvit_det.configuration.cfg_options import add_cfg_options, format_value, parse_value, pasteable
from shvit_det.data.sample import draw_sample
from shvit_det.prediction.inputs import find_inputs
from shvit_det.training.resuming import check_resumable, take_seed

MASK_RCNN = ROOT / 'tests' / 'data' / 'tiny_mask_rcnn.py'
NASTY = 'my (clean) set, [1] it\'s "$HOME" {{a}} é=1'  # a folder
STRINGS = st.text(max_size=12) | st.text(alphabet='\'"[](){}, =\\1eNn$\n.-', max_size=12)
VALUES = st.recursive(
    STRINGS | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=8,
)


def read(*arguments: str) -> dict:
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    return parser.parse_args(arguments).cfg_options


def equal(one, other) -> bool:
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    'text, value',
    [
        ('data/my set/a b.json', 'data/my set/a b.json'),
        ('disc (big)', 'disc (big)'),
        ('C:\\new data\\table.json', 'C:\\new data\\table.json'),
        ("'C:\\a, b\\'", 'C:\\a, b\\'),
        ('it\'s "quoted"', 'it\'s "quoted"'),
        ('a=b = c', 'a=b = c'),
        ('žlutý kůň', 'žlutý kůň'),
        ('', ''),
        ('""', ''),
        ("''", ''),
        ('None', None),
        ('"None"', 'None'),
        ('-1', -1),
        ('1e-3', 0.001),
        ("'-1'", '-1'),
        ('True', True),
        ('__import__("os").system("touch executed")', '__import__("os").system("touch executed")'),
        ('{{ fileDirname }}', '{{ fileDirname }}'),
        ('a,b', ['a', 'b']),
        ('[a, b]', ['a', 'b']),
        ('[(a,b),(c,d)]', [('a', 'b'), ('c', 'd')]),
        ('"[(a,b),(c,d)]"', [('a', 'b'), ('c', 'd')]),  # as mmdet's help spells it, with no shell in between
        ("'[a]'", '[a]'),
        ('(1, 2.5, (None, x y))', (1, 2.5, (None, 'x y'))),
        ("[disc, \"a, b\", '1', it's]", ['disc', 'a, b', '1', "it's"]),
        ('(1,)', (1,)),
        ('[]', []),
        ('["[(", \')\']', ['[(', ')']),
        ('[1].jpg', '[1].jpg'),
    ],
)
def test_what_is_typed_is_what_arrives(text, value):
    assert equal(read('--cfg-options', f'a.b={text}'), {'a.b': value})


@pytest.mark.parametrize('text', ['a=[1,(2]', 'a', 'a=f(x, y)', "a={'b': 1}", "a={'b': 1, 'c': 2}"])
def test_what_could_be_misread_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        read('--cfg-options', text)
    assert repr(text) in capsys.readouterr().err


NAMES = st.from_regex(r'[a-z_./-]{1,5}', fullmatch=True).filter(lambda name: isinstance(parse_value(name), str))
DOCUMENTED = st.recursive(
    NAMES | st.none() | st.booleans() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=8,
)


@given(DOCUMENTED, st.sampled_from(['{}', '"{}"']))
def test_lists_are_read_as_mmengine_reads_them(value, around):
    text = format_value(value).replace(' ', '')
    assert equal(parse_value(text), value) and equal(DictAction._parse_iterable(text), value)
    if isinstance(value, list | tuple):
        assert equal(parse_value(around.format(text)), value)


@example(["'", ["'"]])
@given(VALUES)
def test_every_value_can_be_written(value):
    assert equal(parse_value(format_value(value)), value)


@given(st.dictionaries(st.from_regex(r'[a-z_]+(\.[a-z0-9_]+)?', fullmatch=True), VALUES, min_size=1, max_size=3))
def test_what_is_written_can_be_pasted(options):
    assert all(equal(value, options[key]) for key, value in read(*shlex.split(pasteable(options))).items())


def test_a_shell_gives_the_value_back():
    options = {'a.b': NASTY, 'c': ['$(id)', '`id`', 'a\nb', '\\', "'", (1, '1')], 'd': 'C:\\new\\'}
    script = f'for each in {pasteable(options)}; do printf "%s\\0" "$each"; done'
    words = subprocess.run(['bash', '-c', script], capture_output=True, check=True).stdout.decode().split('\0')[:-1]
    assert read(*words) == options


def suggested(text: str) -> dict:
    """Return the options that the end of a message suggests."""
    return read(*shlex.split('--cfg-options ' + text.split('--cfg-options ')[1]))


def test_a_checkpoint_to_start_from_can_be_pasted(tmp_path):
    path = tmp_path / NASTY / 'epoch 1.pth'
    with pytest.raises(UsageError) as weights_only:
        check_resumable(dict(state_dict={}), path)
    with pytest.raises(UsageError) as another_seed:
        take_seed(Config(dict(randomness=dict(seed=1))), 2, path)
    for caught in (weights_only, another_seed):
        assert suggested(str(caught.value)) == dict(load_from=str(path))


def test_a_pattern_for_folders_within_can_be_pasted(tmp_path):
    (tmp_path / NASTY / 'inner').mkdir(parents=True)
    (tmp_path / NASTY / 'inner' / 'a.jpg').touch()
    with pytest.raises(UsageError, match='you can name ') as caught:
        find_inputs([str(tmp_path / NASTY)])
    pattern = shlex.split(str(caught.value).split('you can name ')[1])
    assert [item.path.name for item in find_inputs(pattern)] == ['a.jpg']


@pytest.mark.slow
def test_cleaned_annotations_are_used_as_the_check_says(tmp_path):
    """A whole way: data in a folder of any name, a cleaned copy in another one, and the options that were printed."""
    data, clean = tmp_path / NASTY / 'data', tmp_path / NASTY / 'clean'
    draw_sample(data, num_train=4, num_val=2)
    file = data / 'annotations' / 'instances_val2017.json'
    file.write_text(re.sub(r'"iscrowd":0,?', '', file.read_text(), count=1).replace(',}', '}'))
    found = tool('check_data', MASK_RCNN, '--data-root', data, '--fix', clean, cwd=tmp_path)
    assert found.returncode == 1, found.stderr
    options = found.stdout.splitlines()[-1].removeprefix('Use them: ')
    assert set(suggested(options).values()) == {str(clean / file.name)}
    again = tool('check_data', MASK_RCNN, '--data-root', data, *shlex.split(options), cwd=tmp_path)
    assert again.returncode == 0 and str(clean / file.name) in again.stdout, again.stdout + again.stderr


@pytest.mark.parametrize('name', ['train', 'test', 'predict', 'benchmark', 'export', 'check-data', 'compare-export'])
def test_every_tool_reads_options_alike(name, monkeypatch, capsys):
    """A mistake in an option is found by the parser of each, which is the same."""
    assert name in COMMANDS
    from importlib import import_module

    main = import_module(f'shvit_det.commands.{name.replace("-", "_")}').main
    monkeypatch.setattr('sys.argv', [name, 'x', '--cfg-options', 'a=f(x, y)'])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "KEY='a, b'" in capsys.readouterr().err
