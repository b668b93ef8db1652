import pytest

from shvit_det import ARCHS, Arch, UsageError
from shvit_det.models.arch import make_arch

TINY = dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), attn_dims=(8, 8, 8))


def test_names_dicts_and_archs_are_accepted():
    assert make_arch('S4') is make_arch('s4') is ARCHS['s4']
    assert make_arch({**TINY, 'depths': [1, 1, 1]}) == Arch(**TINY)
    assert make_arch(ARCHS['s1']) is ARCHS['s1']


@pytest.mark.parametrize(
    'arch, words',
    [
        ('s9', ["'s9'", 's1, s2, s3, s4']),
        (None, ['None', 's1, s2, s3, s4']),
        ({'embed_dims': (16,)}, ['attn_dims', 'depths', 'missing']),
        ({**TINY, 'width': 3}, ['width', 'unknown']),
        ({**TINY, 'depths': (1, 1)}, ['depths', '2']),
        ({**TINY, 'depths': (1, 0, 1)}, ['depths', '(1, 0, 1)']),
        ({**TINY, 'embed_dims': (20, 24, 32)}, ['divisible by 8', '20']),
        ({**TINY, 'attn_dims': (8, 25, 8)}, ['attn_dims', '25 > 24']),
        ({**TINY, 'block_kinds': ('conv', 'conv', 'pool')}, ["'pool'", 'conv', 'attention']),
        ({**TINY, 'query_key_dim': 0}, ['query_key_dim', '0']),
    ],
)
def test_what_is_wrong_is_named(arch, words):
    with pytest.raises(UsageError) as caught:
        make_arch(arch)
    for word in words:
        assert word in str(caught.value)
