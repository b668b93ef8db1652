"""The parts of a run: each moment belongs to one, a delay shows in its own part only, and nothing is left behind."""

from contextlib import suppress

import pytest
import torch
from timed import TINY_MASK_RCNN, TINY_RETINANET, SteppedClock, settings
from torch import nn

from shvit_det.configuration.batches import copy_containers
from shvit_det.models.pyramid import FeaturePyramid
from shvit_det.timing.detector_parts import Span, instrumented, owners_of
from shvit_det.timing.measurement import BACKWARD, FORWARD, Meter, PartTimer, measure
from shvit_det.timing.model_builder import build_models
from shvit_det.timing.record import UNATTRIBUTED

pytestmark = pytest.mark.slow

MASK_RCNN_PARTS = [
    'preprocess',
    'backbone',
    'neck',
    'RPN conv',
    'proposals',
    'RoI features',
    'box head',
    'mask head',
    'post-processing',
]
RETINANET_PARTS = ['preprocess', 'backbone', 'neck', 'head', 'post-processing']
DELAYED = {  # a method deep inside each part
    'preprocess': ('data_preprocessor', 'cast_data'),
    'backbone': ('backbone.stages.1', 'forward'),
    'neck': ('neck.fpn_convs.0', 'forward'),
    'RPN conv': ('rpn_head.rpn_conv', 'forward'),
    'proposals': ('rpn_head', '_bbox_post_process'),
    'RoI features': ('roi_head.mask_roi_extractor.roi_layers.0', 'forward'),
    'box head': ('roi_head.bbox_head.fc_cls', 'forward'),
    'mask head': ('roi_head.mask_head.upsample', 'forward'),
    'post-processing': ('roi_head.mask_head', '_predict_by_feat_single'),
    'head': ('bbox_head.retina_cls', 'forward'),
}


def subject_of(config: str, **changes):
    (subject,) = build_models([config], settings(**changes), None, None)
    subject.fix_detections()
    return subject


@pytest.fixture(scope='module')
def mask_rcnn():
    return subject_of(TINY_MASK_RCNN, detections=5)


@pytest.fixture(scope='module')
def retinanet():
    return subject_of(TINY_RETINANET, detections=5)


def plant(monkeypatch, subject, place, clock, seconds):
    path, method = place
    owner = subject.model.get_submodule(path)
    monkeypatch.setattr(owner, method, clock.delay(getattr(owner, method), seconds))


@pytest.mark.parametrize(
    ('detector', 'part'),
    [
        *(('mask_rcnn', part) for part in MASK_RCNN_PARTS),
        *(('retinanet', part) for part in [*RETINANET_PARTS[:3], 'head']),
    ],
)
def test_a_delay_shows_in_its_part_and_in_no_other(detector, part, request, monkeypatch):
    subject, clock = request.getfixturevalue(detector), SteppedClock()
    plant(monkeypatch, subject, DELAYED[part], clock, 2.0)
    seconds = Meter(clock, torch.device('cpu')).time_parts(subject, 0)
    assert seconds.pop((part, FORWARD)) >= 2.0
    assert set(seconds.values()) == {0.0}


@pytest.mark.parametrize('part', MASK_RCNN_PARTS)
def test_a_delay_shows_in_its_part_alone_and_in_no_other(part, mask_rcnn, monkeypatch):
    clock = SteppedClock()
    plant(monkeypatch, mask_rcnn, DELAYED[part], clock, 2.0)
    (measurement,) = measure([mask_rcnn], Meter(clock, torch.device('cpu')), settings(), print)
    assert list(measurement.alone) == MASK_RCNN_PARTS
    delayed = {name for name, times in measurement.alone.items() if max(times) > 0}
    assert delayed == {part}
    assert min(measurement.alone[part]) >= 2.0
    assert measurement.whole == [sum(run.values()) for run in measurement.in_place]


def test_what_belongs_to_no_part_is_unattributed(mask_rcnn, monkeypatch):
    clock = SteppedClock()
    monkeypatch.setattr(mask_rcnn.model, 'extract_feat', clock.delay(mask_rcnn.model.extract_feat, 3.0))
    seconds = Meter(clock, torch.device('cpu')).time_parts(mask_rcnn, 0)
    assert seconds.pop((UNATTRIBUTED, FORWARD)) == 3.0
    assert set(seconds.values()) == {0.0}


class SlowGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, clock, seconds):
        ctx.clock, ctx.seconds = clock, seconds
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.clock.now += ctx.seconds
        return gradient, None, None


@pytest.mark.parametrize(
    ('part', 'path'),
    [
        ('backbone', 'backbone.stages.0'),
        ('neck', 'neck.lateral_convs.1'),
        ('RPN conv', 'rpn_head.rpn_conv'),
        ('RoI features', 'roi_head.bbox_roi_extractor.roi_layers.1'),
        ('box head', 'roi_head.bbox_head.shared_fcs.0'),
        ('mask head', 'roi_head.mask_head.convs.0'),
    ],
)
def test_a_slow_gradient_shows_in_the_backward_pass_of_its_part(part, path, monkeypatch):
    subject = subject_of(TINY_MASK_RCNN, train=True)
    clock = SteppedClock()
    module = subject.model.get_submodule(path)
    forward = module.forward
    monkeypatch.setattr(module, 'forward', lambda *args: SlowGradient.apply(forward(*args), clock, 1.0))
    seconds = Meter(clock, torch.device('cpu')).time_parts(subject, 0)
    assert seconds.pop((part, BACKWARD)) >= 1.0
    assert set(seconds.values()) == {0.0}


@pytest.mark.parametrize(('method', 'key'), [('step', ('optimizer', FORWARD)), ('backward', ('losses', BACKWARD))])
def test_the_update_has_parts_of_its_own(method, key, monkeypatch):
    subject = subject_of(TINY_MASK_RCNN, train=True)
    clock = SteppedClock()
    monkeypatch.setattr(subject.optim_wrapper, method, clock.delay(getattr(subject.optim_wrapper, method), 1.0))
    seconds = Meter(clock, torch.device('cpu')).time_parts(subject, 0)
    assert seconds.pop(key) == 1.0
    assert set(seconds.values()) == {0.0}


def fields(samples):
    return [sample.pred_instances.to_dict() for sample in samples]


def attributes(model: nn.Module):
    return {name: set(vars(module)) for name, module in model.named_modules()}


@pytest.mark.parametrize('config', [TINY_MASK_RCNN, TINY_RETINANET])
def test_results_are_the_same_bits_and_nothing_stays(config):
    subject = subject_of(config, detections=5, batch=2)
    before = attributes(subject.model)
    plain = fields(subject.run()())
    timer = PartTimer(SteppedClock())
    with timer.attached(subject):
        timer.begin()
        hooked = fields(subject.run()())
    for one, other in zip(plain, hooked, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert len(plain[0]['scores']) == 5
    assert attributes(subject.model) == before


@pytest.mark.parametrize('failure', [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_after_an_exception(failure, mask_rcnn, monkeypatch):
    def fail(*args, **kwargs):
        raise failure

    before = attributes(mask_rcnn.model)
    with monkeypatch.context() as patch:
        patch.setattr(mask_rcnn.model.roi_head.bbox_head.fc_cls, 'forward', fail)
        with suppress(failure):
            Meter(SteppedClock(), torch.device('cpu')).time_parts(mask_rcnn, 0)
            pytest.fail('it did not fail')
    assert attributes(mask_rcnn.model) == before
    seconds = Meter(SteppedClock(), torch.device('cpu')).time_parts(mask_rcnn, 0)
    assert set(seconds) >= {(part, FORWARD) for part in MASK_RCNN_PARTS}


def test_training_computes_the_same_weights_with_its_parts_timed():
    plain, hooked = (subject_of(TINY_MASK_RCNN, train=True) for _ in range(2))
    torch.manual_seed(0)
    plain.run()()
    torch.manual_seed(0)
    Meter(SteppedClock(), torch.device('cpu')).time_parts(hooked, 0)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, hooked.model.state_dict()[name]), name


def test_a_part_alone_computes_what_it_does_in_place_each_time(mask_rcnn):
    """Arguments that a run changes, such as the results to which masks are added, are as they were the next time."""
    results = []
    for _ in range(3):
        alone = mask_rcnn.parts_alone()
        boxes, masks = alone['post-processing']()()
        results.append((boxes[0].scores, masks[0].masks))
        again = alone['post-processing']()()
        results.append((again[0][0].scores, again[1][0].masks))
    for scores, masks in results[1:]:
        assert torch.equal(scores, results[0][0])
        assert torch.equal(masks, results[0][1])
    whole = mask_rcnn.run()()[0].pred_instances
    assert torch.equal(whole.scores, results[0][0])
    assert torch.equal(whole.masks, results[0][1])


def test_a_run_does_not_change_what_it_is_given(mask_rcnn):
    copies = [image.clone() for image in mask_rcnn.batches[0]['inputs']]
    mask_rcnn.run()()
    assert all(torch.equal(image, copy) for image, copy in zip(mask_rcnn.batches[0]['inputs'], copies, strict=True))
    assert 'pred_instances' not in mask_rcnn.batches[0]['data_samples'][0]


def test_a_method_of_two_spans_is_wrapped_once_and_an_earlier_replacement_comes_back():
    root = nn.Sequential(nn.ReLU())
    mine = root[0].forward
    root[0].forward = mine
    calls = []

    def wrapper(span, method):
        calls.append(span.part)
        return lambda *args: method(*args)

    with instrumented(root, [Span('a', '0'), Span('b', '0'), Span('c', 'missing')], wrapper):
        assert root[0].forward is not mine
    assert calls == ['a']
    assert root[0].forward is mine


def test_timing_ends_no_origin_of_feature_maps():
    """What is timed is what runs untimed: a head may start from where the neck took its finest level."""
    levels = [torch.ones(1, requires_grad=True) * 2 for _ in range(2)]
    pyramid = FeaturePyramid(levels, origin='here')
    timer = PartTimer(SteppedClock())
    timer.begin()
    returned = timer.wrap(Span('neck', 'neck'), lambda: pyramid)()
    assert returned is pyramid and pyramid.origin == 'here'
    kept = copy_containers((pyramid,))[0]
    assert list(pyramid) == levels and pyramid.origin is None
    assert kept.origin == 'here' and list(kept) == levels


def test_a_cascade_has_an_owner_for_every_stage():
    root = nn.Module()
    root.heads = nn.ModuleList([nn.ReLU(), nn.ReLU()])
    assert owners_of(root, Span('box head', 'heads')) == list(root.heads)
    assert owners_of(root, Span('box head', 'head')) == []
