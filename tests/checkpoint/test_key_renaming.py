"""The renaming of keys between the forms, as algebra."""

import golden
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shvit_det import ARCHS, UsageError
from shvit_det.checkpoint import key_renaming as keys

RESTS = ('conv.m.c.weight', 'mixer.m.qkv.bn.running_var', 'ffn.m.pw1.bn.weight', 'm.pw2.c.weight', 'se.fc1.bias')
DOWNSAMPLING = ('0.0', '0.1', '1', '2.0', '2.1')
index = st.integers(0, 40)
rest = st.sampled_from(RESTS)
official_names = st.one_of(
    st.builds('blocks1.{}.{}'.format, index, rest),
    st.builds('blocks{}.{}.{}'.format, st.sampled_from([2, 3]), st.integers(3, 40), rest),
    st.builds('blocks{}.{}.{}'.format, st.sampled_from([2, 3]), st.sampled_from(DOWNSAMPLING), rest),
)
timm_names = st.one_of(
    st.builds('stages.{}.blocks.{}.{}'.format, st.integers(0, 2), index, rest),
    st.builds('stages.{}.downsample.{}.{}'.format, st.integers(1, 2), st.integers(0, 4), rest),
)


@given(official_names)
def test_official_names_come_back(name):
    assert keys.official_to_timm(name).startswith('stages.')
    assert keys.timm_to_official(keys.official_to_timm(name)) == name


@given(timm_names)
def test_timm_names_come_back(name):
    assert keys.timm_to_official(name).startswith('blocks')
    assert keys.official_to_timm(keys.timm_to_official(name)) == name


@given(st.text('abkloscstage123.0_-é٣\n', max_size=25))
def test_other_names_are_left_alone_and_none_is_lost(name):
    for there, back in (
        (keys.official_to_timm, keys.timm_to_official),
        (keys.timm_to_official, keys.official_to_timm),
    ):
        assert there(name) == name or back(there(name)) == name


@given(st.lists(official_names, unique=True, max_size=30))
def test_renaming_keeps_every_entry_and_its_order(old):
    weights = {key: number for number, key in enumerate(old)}
    assert list(keys.with_keys(weights, keys.official_to_timm).values()) == list(weights.values())


@pytest.mark.parametrize('variant', ['s1', 's4'])
def test_the_reference_names_are_paired_as_in_the_reference(variant):
    reference = golden.load(f'shvit_{variant}')
    pairs = list(zip(reference['official_keys'], reference['timm_keys'], strict=True))  # both in the order of the model
    assert [keys.official_to_timm(official) for official, _ in pairs] == [timm for _, timm in pairs]
    assert [keys.timm_to_official(timm) for _, timm in pairs] == [official for official, _ in pairs]


def test_the_second_head_of_distillation_has_a_place():
    weights = {'blocks1.0.conv.m.c.weight': torch.zeros(1), 'head.bn.weight': torch.zeros(1)}
    weights |= {f'head_dist.{name}': torch.zeros(1) for name in ('bn.weight', 'l.bias')}
    found = keys.renamed_weights(weights).tensors
    assert list(found)[1:] == ['head.bn.weight', 'head.distillation_bn.weight', 'head.distillation_l.bias']
    assert [keys.ours_to_timm(name) for name in found][1:] == list(weights)[1:]


def test_wrappers_come_off_only_where_every_name_has_them():
    assert list(keys.without_wrappers({'module.module.a': 1, 'module.module.b': 2, 'steps': 3})) == ['a', 'b', 'steps']
    assert list(keys.without_wrappers({'module._orig_mod.a': 1})) == ['a']
    mixed = {'module.a': 1, 'b': 2}
    assert keys.without_wrappers(mixed) == mixed
    assert keys.without_wrappers({}) == {}


def test_two_tensors_for_one_name_are_refused():
    with pytest.raises(UsageError, match=r"two tensors .* 'backbone\.stages\.0\.blocks\.0\.x'"):
        keys.renamed_weights({'blocks1.0.x': torch.zeros(1), 'stages.0.blocks.0.x': torch.zeros(1)})


def test_the_variants_have_distinct_shapes():
    numbers = {(arch.embed_dims, arch.depths, arch.attn_dims) for arch in ARCHS.values()}
    assert len(numbers) == len(ARCHS)
