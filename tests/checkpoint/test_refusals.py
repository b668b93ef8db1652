"""Weights that must not load: of another model, or spoilt; each refusal is one sentence."""

import pytest
import torch
from checkpoint_files import NAME, TINY, prefixed, refusal
from torch import nn

from shvit_det import SHViT
from shvit_det.checkpoint.loading import load_content
from shvit_det.checkpoint.reading import read_content

# ----- another model


@pytest.mark.parametrize('theirs', ['s1', 's2', 's3', 's4'])
@pytest.mark.parametrize('ours', ['s1', 's2', 's3', 's4'])
def test_the_variant_that_would_fit_is_named(theirs, ours, variants):
    if theirs == ours:
        load_content(variants[ours], variants[theirs].state_dict(), 'file.pth')
        return
    sentence = refusal(load_content, variants[ours], variants[theirs].state_dict(), 'file.pth')
    assert 'file.pth belongs to another model' in sentence
    assert f'holds a SHViT-{theirs.upper()}' in sentence and f'this is a SHViT-{ours.upper()}' in sentence
    assert f"model.backbone.arch='{theirs}'" in sentence


@pytest.fixture(scope='module')
def variants():
    return {name: SHViT(name) for name in ('s1', 's2', 's3', 's4')}


def test_widths_of_an_unknown_variant_are_named(backbone, state, variants):
    sentence = refusal(load_content, variants['s1'], state, 'file')
    assert 'embed_dims [16, 24, 32], depths [1, 2, 1], attn_dims [None, 8, 8]' in sentence


def test_a_variant_is_recognised_below_fewer_stages(variants):
    sentence = refusal(load_content, SHViT('s4', out_indices=(0, 1)), variants['s3'].state_dict(), 'file')
    assert 'holds a SHViT-S3' in sentence and 'this is a SHViT-S4' in sentence


def test_what_is_left_over_or_reshaped_is_counted(backbone, state):
    sentence = refusal(load_content, backbone, {**state, 'stages.0.extra': torch.zeros(1)}, 'file')
    assert "1 of the file are left over (the first: 'backbone.stages.0.extra')" in sentence
    sentence = refusal(load_content, backbone, {**state, NAME: torch.zeros(2, 2, 3, 3)}, 'file')
    assert '1 have another shape' in sentence and f"'backbone.{NAME}'" in sentence


def test_weights_of_another_network_are_refused_even_without_strict(backbone):
    foreign = {'conv1.weight': torch.zeros(64, 3, 7, 7), 'fc.bias': torch.zeros(1000)}
    assert '2 of the file are left over' in refusal(load_content, backbone, foreign, 'file')
    assert 'not one of its tensors' in refusal(load_content, backbone, foreign, 'file', strict=False)


def test_a_backbone_for_a_whole_detector_is_sent_to_the_right_option(backbone, state):
    detector = nn.Module()
    detector.backbone, detector.neck = backbone, nn.Conv2d(1, 1, 1)
    for weights in (state, {**state, 'head.l.weight': torch.zeros(3, 32), 'head.bn.weight': torch.zeros(32)}):
        sentence = refusal(load_content, detector, weights, 'file')
        assert 'nothing for neck' in sentence and 'model.backbone.init_cfg.checkpoint' in sentence


def test_what_is_no_state_dict_is_refused(backbone):
    for content in (
        {},
        dict(model=3),
        [torch.zeros(1)],
        torch.zeros(1),
        dict(state_dict={}),
        dict(a=1, b=torch.ones(1)),
    ):
        assert 'holds no state dict' in refusal(load_content, backbone, content, 'file')


def test_strict_false_loads_what_fits_and_says_what_did_not(backbone, state, log):
    weights = {**state, NAME: torch.zeros(2, 2), 'stages.0.extra': torch.zeros(1)}
    del weights['patch_embed.0.bn.bias']
    before = backbone.state_dict()[NAME].clone()
    load_content(backbone, weights, 'file', strict=False)
    own = backbone.state_dict()
    assert torch.equal(own[NAME], before)
    assert all(torch.equal(own[name], weights[name]) for name in own if name in weights and name != NAME)
    shown = log.messages[-1]
    assert '1 missing in the file, 1 of another shape, 1 left over: ' in shown
    assert all(f'backbone.{name}' in shown for name in (NAME, 'stages.0.extra', 'patch_embed.0.bn.bias'))


# ----- heads for other classes


def test_new_classes_leave_only_heads_and_are_asked_for(log):
    def detector(classes):
        model = nn.Module()
        model.backbone, model.neck, model.head = SHViT(TINY), nn.Conv2d(2, 2, 1), nn.Linear(4, classes)
        return model

    source, target = detector(5), detector(3)
    sentence = refusal(load_content, target, source.state_dict(), 'file')
    assert '2 tensors have another length, as with another number of classes: head.weight has 5 in the file' in sentence
    before = target.head.weight.clone()
    load_content(target, source.state_dict(), 'file', new_classes=True)
    assert torch.equal(target.head.weight, before)
    assert torch.equal(target.neck.weight, source.neck.weight)
    shown = log.messages[-1]
    assert '0 of 2 head' in shown and 'left at their initial values: head.weight, head.bias' in shown

    other = detector(3)
    other.neck = nn.Conv2d(2, 3, 1)
    assert '2 have another shape' in refusal(load_content, other, source.state_dict(), 'file', new_classes=True)
    lacking = {name: value for name, value in source.state_dict().items() if not name.startswith('head.')}
    assert 'backbone, neck and nothing for head' in refusal(load_content, target, lacking, 'file', new_classes=True)


# ----- spoilt values


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_values_that_are_not_finite_are_refused(value, backbone, state):
    before = backbone.state_dict()[NAME].clone()
    state[NAME][0, 0] = value
    for strict in (True, False):
        assert NAME in (sentence := refusal(load_content, backbone, state, 'file', strict=strict))
        assert 'NaN or infinity' in sentence
    assert torch.equal(backbone.state_dict()[NAME], before)


def test_values_that_overflow_when_cast_are_refused(backbone, state):
    state[NAME] = state[NAME].double() * 1e300
    assert 'NaN or infinity' in refusal(load_content, backbone, state, 'file')


@pytest.mark.parametrize('dtype', [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_what_is_no_float_is_refused(dtype, backbone, state):
    state[NAME] = torch.zeros(state[NAME].shape).to(dtype)
    assert str(dtype) in refusal(load_content, backbone, state, 'file')


def test_a_float_for_a_counter_is_refused(backbone, state):
    state['patch_embed.0.bn.num_batches_tracked'] = torch.tensor(1.0)
    assert 'num_batches_tracked' in refusal(load_content, backbone, state, 'file')


@pytest.mark.parametrize(
    'tensor, words',
    [
        (torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8), 'qint8'),
        (torch.eye(2).to_sparse(), 'sparse_coo'),
        (torch.zeros(2, device='meta'), 'no values'),
        (torch.zeros(1).expand(1_000_000_000), 'more than the file holds'),
    ],
    ids=['quantised', 'sparse', 'meta', 'expanded'],
)
@pytest.mark.filterwarnings('ignore')
def test_tensors_that_are_not_plain_are_refused(tensor, words, tmp_path):
    torch.save(dict(model=dict(a=tensor)), tmp_path / 'a.pth')
    assert words in refusal(read_content, tmp_path / 'a.pth')


def test_a_name_twice_after_renaming_is_refused(backbone, state):
    weights = {**prefixed('backbone.', state), **prefixed('backbone.', {'blocks1.0.x': torch.zeros(1)})}
    weights['backbone.stages.0.blocks.0.x'] = torch.zeros(1)
    assert 'two tensors' in refusal(load_content, backbone, weights, 'file')


@pytest.mark.parametrize('place', ['optimizer', 'deep'])
def test_a_tensor_that_is_larger_than_the_file_is_found_at_any_depth(place, tmp_path):
    """As an optimizer's state: a few bytes that stand for terabytes, until something copies them."""
    huge = torch.zeros(1).expand(1 << 42)
    content = dict(state_dict={}, optimizer=dict(state={0: dict(exp_avg=huge)}))
    if place == 'deep':
        content = [({'a': [[content]]},)]
    torch.save(content, tmp_path / 'a.pth')
    assert "its tensor 'exp_avg' declares the shape" in refusal(read_content, tmp_path / 'a.pth')


def test_content_that_holds_itself_is_read(tmp_path):
    content = dict(state_dict=dict(a=torch.zeros(1)))
    content['self'] = content
    torch.save(content, tmp_path / 'a.pth')
    assert read_content(tmp_path / 'a.pth')['self']['state_dict']['a'].item() == 0
