"""Conversions come back bit by bit, and publishing leaves nothing but the weights and what they mean."""

import hashlib
from functools import cache

import checkpoint_files as files
import golden
import pytest
import torch
from processes import tool
from safetensors.torch import load_file

from shvit_det import SHViT, UsageError, load_checkpoint
from shvit_det.checkpoint.convert import SUFFIXES, TARGETS, convert_checkpoint
from shvit_det.checkpoint.reading import read_content

pytestmark = pytest.mark.slow


@cache
def shapes(kind):
    return golden.load('shvit_s1')[f'{kind}_keys']


@cache
def classifier(kind):
    return golden.state_dict(shapes(kind))


def weights_in(path):
    content = read_content(path)
    for container in ('state_dict', 'model'):
        content = content.get(container, content)
    return content


def assert_same(left, right):
    assert list(left) == list(right)
    for name, value in left.items():
        assert value.dtype == right[name].dtype and torch.equal(value, right[name]), name


@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize('through', TARGETS)
@pytest.mark.parametrize('kind', ['official', 'timm'])
def test_a_classifier_comes_back_bit_by_bit(kind, through, suffix, tmp_path):
    state = dict(classifier(kind))
    name = next(name for name in state if name.endswith('qkv.c.weight'))
    state[name] = state[name].half()  # what is stored as it is stays as it is
    source, there, back = tmp_path / 'source.pth', tmp_path / f'there{suffix}', tmp_path / f'back{suffix}'
    torch.save(dict(model=state), source)
    done = convert_checkpoint(source, there, through)
    assert done.path == there and done.count == len(state) and done.left_out == ()
    convert_checkpoint(there, back, kind)
    first, second = weights_in(source), weights_in(back)
    assert_same({name: first[name] for name in sorted(first)}, {name: second[name] for name in sorted(second)})
    if suffix != '.safetensors':  # which keeps its own order
        assert list(first) == list(second)


@pytest.mark.parametrize('source, to', [('official', 'timm'), ('timm', 'official')])
def test_names_are_those_of_the_reference(source, to, tmp_path):
    torch.save(classifier(source), tmp_path / 'a.pth')
    convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', to)
    found = weights_in(tmp_path / 'b.pth')
    assert {name: list(value.shape) for name, value in found.items()} == shapes(to)
    assert all(torch.equal(a, b) for a, b in zip(found.values(), classifier(source).values(), strict=True))


@pytest.mark.parametrize('detector', ['mask_rcnn', 'retinanet'])
def test_a_detector_comes_back_and_gives_timm_its_backbone(detector, tmp_path):
    state = files.official_detector('s1', detector)
    source, ours, back, timm = (tmp_path / name for name in ('a.pth', 'ours.pth', 'back.pth', 'timm.safetensors'))
    torch.save(files.mmdet2(state), source)
    convert_checkpoint(source, ours, 'ours')
    found = read_content(ours)
    assert any(name.startswith('backbone.stages.') for name in found['state_dict'])
    assert found['meta']['CLASSES'] == ('person', 'bicycle') and 'optimizer' in found
    convert_checkpoint(ours, back, 'official')
    assert_same(read_content(back)['state_dict'], state)
    done = convert_checkpoint(ours, timm, 'timm')
    assert done.count == 464 and any(part.startswith('neck (') for part in done.left_out)
    assert set(load_file(timm)) == {name for name in shapes('timm') if not name.startswith('head.')}


def test_the_second_head_survives_in_our_form_and_the_authors(tmp_path):
    state = classifier('official')
    state = state | {k.replace('head.', 'head_dist.'): v for k, v in state.items() if k.startswith('head.')}
    torch.save(dict(model=state), tmp_path / 'a.pth')
    convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.safetensors', 'ours')
    convert_checkpoint(tmp_path / 'b.safetensors', tmp_path / 'c.pth', 'official')
    found = weights_in(tmp_path / 'c.pth')
    assert_same({name: found[name] for name in state}, state)
    assert len(found) == len(state)
    done = convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'd.pth', 'timm')
    assert done.left_out == ('distillation head (7)',)


def test_publishing_strips_all_but_weights_and_meta_and_adds_the_hash(tmp_path):
    state = {f'backbone.{name}': value for name, value in files.without_head(classifier('timm')).items()}
    torch.save(dict(files.mmengine(state), optimizer=dict(state={}), param_schedulers=[]), tmp_path / 'epoch_3.pth')
    kept = convert_checkpoint(tmp_path / 'epoch_3.pth', tmp_path / 'kept.pth', 'ours')
    assert set(read_content(kept.path)) == {'state_dict', 'meta', 'message_hub', 'optimizer', 'param_schedulers'}
    assert kept.left_out == ('ema_state_dict',)
    for suffix in ('.pth', '.safetensors'):
        target = tmp_path / f'shvit_s1{suffix}'
        done = convert_checkpoint(tmp_path / 'epoch_3.pth', target, 'ours', publish=True)
        digits = hashlib.sha256(done.path.read_bytes()).hexdigest()[:8]
        assert done.path == tmp_path / f'shvit_s1-{digits}{suffix}' and not target.exists()
        load_checkpoint(SHViT('s1'), done.path, sha256=digits)
    assert set(read_content(next(tmp_path.glob('shvit_s1-*.pth')))) == {'state_dict', 'meta'}
    assert not list(tmp_path.glob('*.part'))


@pytest.mark.parametrize(
    'arguments, words',
    [
        (('nowhere.pth', 'b.pth', 'ours'), ['no such checkpoint', 'nowhere.pth']),
        (('a.pth', 'b.onnx', 'ours'), ['.safetensors', 'b.onnx']),
        (('a.pth', 'nowhere/b.pth', 'ours'), ['no such folder']),
        (('a.pth', 'b.pth', 'torchvision'), ["'torchvision'", 'ours, timm, official']),
        (('a.pth', 'a.pth', 'timm'), ['a.pth is the file to be read, and would be written over']),
        (('other.pth', 'b.pth', 'ours'), ['holds no SHViT', "'fc.weight'"]),
    ],
)
def test_what_cannot_be_converted_is_named(arguments, words, tmp_path):
    torch.save(classifier('timm'), tmp_path / 'a.pth')
    torch.save({'fc.weight': torch.zeros(2)}, tmp_path / 'other.pth')
    source, target, to = arguments
    with pytest.raises(UsageError) as caught:
        convert_checkpoint(tmp_path / source, tmp_path / target, to)
    assert all(word in str(caught.value) for word in words)
    assert {path.name for path in tmp_path.iterdir()} == {'a.pth', 'other.pth'}


def test_the_tool_converts_and_says_what_it_did(tmp_path):
    torch.save(files.official_release(classifier('official')), tmp_path / 'shvit_s1.pth')
    options = ('--to', 'timm', '--publish')
    result = tool('convert_checkpoint', 'shvit_s1.pth', 's1.safetensors', *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    path = next(tmp_path.glob('s1-????????.safetensors'))
    line = result.stdout.splitlines()[-1]
    assert line.startswith(f'{path.name}: 471 tensors from official classification to timm; left out: ')
    assert 'optimizer' in line and 'model_ema' in line
    assert {name: list(value.shape) for name, value in load_file(path).items()} == shapes('timm')

    (tmp_path / 'page.pth').write_text('<html>')
    result = tool('convert_checkpoint', 'page.pth', 'b.pth', '--to', 'ours', cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.startswith('error: page.pth') and 'Traceback' not in result.stderr
