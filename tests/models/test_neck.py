import golden
import pytest
import torch

from shvit_det import SHViTFPN, UsageError

FORMS = {
    'mask_rcnn': dict(num_outs=5, num_upsamples=2),
    'retinanet': dict(num_outs=5, num_upsamples=1, add_extra_convs='on_input'),
}
STRIDES = {'mask_rcnn': (4, 8, 16, 32, 64), 'retinanet': (8, 16, 32, 64, 128)}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('variant', ['s1', 's4'])
def test_levels_agree_with_the_reference(form, variant):
    reference = golden.load(f'neck_{form}_{variant}')
    in_channels = [shape[1] for shape in reference['cases'][0]['inputs']]
    neck = SHViTFPN(in_channels, 256, **FORMS[form]).eval()
    neck.load_state_dict(golden.state_dict(reference['official_keys']), strict=True)
    for case in reference['cases']:
        with torch.no_grad():
            outs = neck([golden.image(shape) for shape in case['inputs']])
        for out, expected in zip(outs, case['outputs'], strict=True):
            golden.assert_matches(out, expected)


@pytest.mark.parametrize('form', FORMS)
def test_strides_are_those_of_the_outputs(form):
    neck = SHViTFPN((8, 8, 8), 8, **FORMS[form])
    outs = neck([torch.randn(1, 8, 256 // stride, 256 // stride) for stride in (16, 32, 64)])
    assert neck.out_strides((16, 32, 64)) == STRIDES[form] == tuple(256 // out.shape[-1] for out in outs)


@pytest.mark.parametrize('form', FORMS)
def test_every_parameter_gets_a_gradient(form):
    neck = SHViTFPN((4, 6, 8), 8, **FORMS[form])
    neck.init_weights()
    outs = neck([torch.randn(2, c, s, s) for c, s in ((4, 9), (6, 5), (8, 3))])
    sum(out.square().mean() for out in outs).backward()
    assert [name for name, p in neck.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_coarser_levels_without_convolutions_subsample():
    neck = SHViTFPN((4, 4), 4, num_outs=5, num_upsamples=1)
    outs = neck([torch.randn(1, 4, 9, 9), torch.randn(1, 4, 5, 5)])
    assert torch.equal(outs[3], outs[2][:, :, ::2, ::2])
    assert torch.equal(outs[4], outs[3][:, :, ::2, ::2])
    assert neck.out_strides((16, 32)) == (8, 16, 32, 64, 128)


def test_a_second_coarser_convolution_stands_on_the_first():
    neck = SHViTFPN((4, 6), 4, num_outs=4, num_upsamples=0, add_extra_convs=True)
    inputs = [torch.randn(1, 4, 16, 16), torch.randn(1, 6, 8, 8)]
    outs = neck(inputs)
    assert torch.equal(outs[2], neck.fpn_convs[2](inputs[1]))
    assert torch.equal(outs[3], neck.fpn_convs[3](outs[2]))


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(num_outs=4), ['num_outs=4', '3 inputs', 'num_upsamples=2']),
        (dict(num_upsamples=-1), ['num_upsamples=-1']),
        (dict(add_extra_convs='on_output'), ["'on_output'", 'on_input']),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(UsageError) as caught:
        SHViTFPN((4, 4, 4), 4, **arguments)
    for word in words:
        assert word in str(caught.value)


def test_a_wrong_number_of_inputs_is_named():
    with pytest.raises(UsageError, match='3 inputs, but got 2'):
        SHViTFPN((4, 4, 4), 4)([torch.randn(1, 4, 8, 8)] * 2)
