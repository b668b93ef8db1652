"""The benchmark as a whole: what it measures and says, what it refuses."""

import json

import cv2
import numpy as np
import pytest
import torch
from paths import ROOT
from processes import tool
from timed import TINY_MASK_RCNN, TINY_RETINANET, SteppedClock, settings

from shvit_det import UsageError
from shvit_det.configuration.reading import load_config
from shvit_det.timing import benchmark as module
from shvit_det.timing.benchmark import benchmark
from shvit_det.timing.detector_parts import Span, instrumented
from shvit_det.timing.measurement import MAX_WARMUP_RUNS, Measurement, Meter, measure
from shvit_det.timing.model_builder import build_models, config_hash, config_shape
from shvit_det.timing.record import UNATTRIBUTED, Ceilings, read_record
from shvit_det.timing.results import terminal_report
from shvit_det.timing.settings import paper_conditions

pytestmark = pytest.mark.slow

CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def known_ceilings(monkeypatch):
    """They take a second and have tests of their own."""
    monkeypatch.setattr(module, 'measure_ceilings', lambda *_: Ceilings(matmul_gflop_s=100, matmul_by='', copy_gb_s=20))


def only(record):
    (subject,) = record['subjects']
    return subject


@pytest.mark.parametrize('config', [TINY_MASK_RCNN, TINY_RETINANET])
def test_a_detector_has_its_parts_in_place_and_alone_and_their_costs(config):
    subject = only(benchmark([config], settings(runs=3, detections=7)))
    assert subject['in_place'][-1]['name'] == UNATTRIBUTED
    assert subject['counts']['detections'] == [7]
    assert subject['whole']['runs'] == 3
    names = [part['name'] for part in subject['in_place'][:-1]]
    assert [part['name'] for part in subject['alone']] == names
    assert set(names) <= {cost['name'] for cost in subject['cost']}
    assert subject['input_shape'] == [1, 3, 96, 128]


@pytest.mark.parametrize(
    ('config', 'own'),
    [
        ('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', ['head']),
        ('mmdet::detr/detr_r50_8xb2-150e_coco.py', ['queries', 'encoder', 'decoder', 'head']),
        ('mmdet::solo/decoupled-solo-light_r50_fpn_3x_coco.py', ['head']),
    ],
)
def test_detectors_of_mmdet_with_other_backbones(config, own):
    fewer = {'model.mask_head.num_grids': [6, 5, 4, 3, 2]} if 'solo' in config else {}  # a mask for each of their cells
    subject = only(benchmark([config], settings(shape=(64, 64), runs=1), options=fewer))
    names = [part['name'] for part in subject['in_place']]
    assert names == ['preprocess', 'backbone', 'neck', *own, 'post-processing', UNATTRIBUTED]


def test_costs_belong_to_their_parts():
    costs = {cost['name']: cost for cost in only(benchmark([TINY_MASK_RCNN], settings()))['cost']}
    parameters = sum(cost['parameters'] for cost in costs.values())
    (built,) = build_models([TINY_MASK_RCNN], settings(), None, None)
    assert parameters == sum(parameter.numel() for parameter in built.model.parameters())
    fpn_convs = built.model.backbone
    counted = torch.utils.flop_counter.FlopCounterMode(display=False)
    with counted, torch.no_grad():
        fpn_convs(torch.zeros(1, 3, 96, 128))
    assert costs['backbone']['macs'] == counted.get_total_flops() // 2
    assert 'torchvision.nms' in costs['proposals']['uncounted']
    assert costs['RoI features']['macs'] > 0  # on a CPU weighted sums of pixels


def test_the_number_of_detections_is_fixed_by_the_threshold_alone():
    (subject,) = build_models([TINY_RETINANET], settings(batch=2, detections=13), None, None)
    plain = {name: value.clone() for name, value in subject.model.state_dict().items()}
    threshold = subject.model.bbox_head.test_cfg.score_thr
    subject.fix_detections()
    assert subject.counts()['detections'] == [13, 13]
    assert subject.model.bbox_head.test_cfg.score_thr != threshold
    assert all(torch.equal(value, plain[name]) for name, value in subject.model.state_dict().items())
    assert subject.warnings == []


def test_more_detections_than_boxes_are_warned_of():
    record = benchmark([TINY_MASK_RCNN], settings(detections=10**6))
    assert any('the boxes suffice for' in warning for warning in record['warnings'])


def test_a_checkpoint_finds_what_it_finds(tmp_path):
    (subject,) = build_models([TINY_MASK_RCNN], settings(), None, None)
    path = str(tmp_path / 'weights.pth')
    torch.save(dict(state_dict=subject.model.state_dict()), path)
    (loaded,) = build_models([TINY_MASK_RCNN], settings(), path, None)
    threshold = loaded.model.roi_head.test_cfg.score_thr
    loaded.fix_detections()
    assert loaded.model.roi_head.test_cfg.score_thr == threshold
    assert loaded.weights == 'weights.pth'


def test_a_training_step_has_both_phases_and_an_optimizer():
    subject = only(benchmark([TINY_MASK_RCNN], settings(train=True)))
    phases = {(part['name'], part['phase']) for part in subject['in_place']}
    assert {(name, phase) for name in ('backbone', 'neck', 'RPN conv') for phase in ('forward', 'backward')} <= phases
    assert ('optimizer', 'forward') in phases and ('losses', 'backward') in phases
    assert subject['alone'] == []
    assert subject['counts'] == {'ground truth': [7]}
    backbone = next(cost for cost in subject['cost'] if cost['name'] == 'backbone')
    forward = next(c for c in only(benchmark([TINY_MASK_RCNN], settings()))['cost'] if c['name'] == 'backbone')
    assert 2.5 * forward['macs'] < backbone['macs'] < 3.01 * forward['macs']  # the image needs no gradient


def test_a_backbone_in_training():
    subject = only(benchmark(['shvit:s1'], settings(train=True)))
    assert {part['name'] for part in subject['in_place']} == {'backbone', 'optimizer', 'losses', UNATTRIBUTED}


@pytest.mark.parametrize(('part', 'kind'), [('backbone', 'backbone'), ('neck', 'part'), ('box head', 'part')])
def test_one_part_can_be_measured_by_itself(part, kind):
    subject = only(benchmark([TINY_MASK_RCNN], settings(only=part)))
    assert subject['kind'] == kind
    assert subject['alone'] == subject['in_place'] == []
    assert subject['whole']['runs'] == 2
    assert [cost['name'] for cost in subject['cost'] if cost['macs']] == [part]


def test_configs_and_backbones_are_compared_by_what_they_have_in_common():
    record = benchmark([TINY_MASK_RCNN, TINY_RETINANET, 'shvit:s1'], settings(shape=(64, 64)))
    compared = [(ratio['figure'], ratio['subject'], ratio['base']) for ratio in record['ratios']]
    base = 'tiny_mask_rcnn'
    assert compared == [
        ('whole', 'tiny_retinanet', base),
        ('backbone alone', 'tiny_retinanet', base),
        ('backbone alone', 'shvit:s1', base),
    ]
    assert all(ratio['low'] is ratio['high'] is ratio['coverage'] is None for ratio in record['ratios'])  # two rounds
    shapes = [subject['input_shape'] for subject in record['subjects']]
    assert shapes == [[1, 3, 64, 64]] * 3


def test_five_rounds_have_intervals_that_say_how_sure_they_are():
    record = benchmark(['shvit:s1', 'shvit:s2'], settings(shape=(64, 64), runs=5))
    (ratio,) = record['ratios']
    assert ratio['low'] <= ratio['ratio'] <= ratio['high'] and ratio['coverage'] == 0.9375
    assert '94 % interval' in terminal_report(record)


def test_the_same_config_twice_has_two_names():
    subjects = build_models([TINY_RETINANET, TINY_RETINANET], settings(), None, None)
    assert [subject.name for subject in subjects] == ['tiny_retinanet', 'tiny_retinanet (2)']
    one, other = (subject.model.state_dict() for subject in subjects)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_rounds_are_interleaved_and_each_begins_with_another(monkeypatch):
    subjects = build_models([TINY_RETINANET, TINY_MASK_RCNN], settings(), None, None)
    order = []
    add_round = Measurement.add_round

    def noted(measurement, meter, number):
        order.append((number, measurement.model.name))
        add_round(measurement, meter, number)

    monkeypatch.setattr(Measurement, 'add_round', noted)
    measure(subjects, Meter(SteppedClock(), CPU), settings(), lambda _: None)
    first, second = (subject.name for subject in subjects)
    assert order == [(0, first), (0, second), (1, second), (1, first)]


def test_seconds_bound_the_rounds_but_five_are_made(monkeypatch):
    subjects = build_models(['shvit:s1'], settings(shape=(64, 64)), None, None)
    (measurement,) = measure(subjects, Meter(SteppedClock(), CPU), settings(runs=None, seconds=0.001), lambda _: None)
    assert len(measurement.whole) == 5


def test_the_first_run_shows_what_compiling_took(monkeypatch):
    monkeypatch.setattr(torch, 'compile', lambda function, **_: function)
    (subject,) = build_models(['shvit:s1'], settings(shape=(64, 64), compile='default'), None, None)
    subject.compile()
    clock = SteppedClock()
    delays = iter([30.0])
    backbone = subject.model.backbone

    def wrapper(_, method):
        def slow(*args):
            clock.now += next(delays, 0.0) + 1.0
            return method(*args)

        return slow

    with instrumented(backbone, [Span('', '', 'forward')], wrapper):
        (measurement,) = measure([subject], Meter(clock, CPU), settings(), lambda _: None)
    assert measurement.compile_seconds == 30.0
    assert measurement.warmup[0] == 31.0
    assert set(measurement.whole) == {1.0}
    assert subject.prepared == ['compiled with frozen weights']


def test_a_slow_warm_up_ends_with_the_second_run(monkeypatch):
    monkeypatch.setattr('shvit_det.timing.measurement.MAX_WARMUP_SECONDS', 0.0)
    (subject,) = build_models(['shvit:s1'], settings(shape=(64, 64)), None, None)
    (measurement,) = measure([subject], Meter(SteppedClock(), CPU), settings(), lambda _: None)
    assert len(measurement.warmup) == 2
    assert not measurement.stable


def test_a_warm_up_that_does_not_settle_ends_and_is_warned_of():
    (subject,) = build_models(['shvit:s1'], settings(shape=(64, 64)), None, None)
    clock = SteppedClock()
    faster = iter(0.8**number for number in range(10**6))

    def wrapper(_, method):
        def slow(*args):
            clock.now += next(faster)
            return method(*args)

        return slow

    with instrumented(subject.model, [Span('', '', 'test_step')], wrapper):
        (measurement,) = measure([subject], Meter(clock, CPU), settings(), lambda _: None)
    assert len(measurement.warmup) == MAX_WARMUP_RUNS
    assert not measurement.stable


def test_a_busy_machine_is_warned_of(monkeypatch):
    clock = SteppedClock()
    monkeypatch.setattr(module, 'clock_for', lambda _: clock)
    test_step, runs = module.TimedModel.run, iter(range(10**6))

    def uneven(subject, index=0):
        run = test_step(subject, index)
        return clock.delay(run, 1.0 if next(runs) % 4 else 1.5)

    monkeypatch.setattr(module.TimedModel, 'run', uneven)
    record = benchmark(['shvit:s1'], settings(shape=(64, 64), runs=20))
    assert any('a machine that is busy' in warning for warning in record['warnings'])
    monkeypatch.setattr(module.TimedModel, 'run', lambda subject, index=0: clock.delay(test_step(subject, index), 1.0))
    assert benchmark(['shvit:s1'], settings(shape=(64, 64), runs=20))['warnings'] == []


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / 'photographs'
    folder.mkdir()
    for number, (height, width) in enumerate([(60, 90), (90, 60), (70, 70)]):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{number}.png'), noise)
    (folder / 'notes.txt').write_text('no image')
    return folder


def test_photographs_go_through_the_configs_pipeline(photographs):
    subjects = build_models([TINY_MASK_RCNN], settings(shape=None, images=str(photographs)), None, None)
    samples = [batch['data_samples'][0] for batch in subjects[0].batches]
    assert [sample.ori_shape for sample in samples] == [(60, 90), (90, 60), (70, 70)]
    assert {max(sample.img_shape) for sample in samples} == {max(config_shape(load_config(TINY_MASK_RCNN)))}
    record = benchmark([TINY_MASK_RCNN], settings(shape=None, images=str(photographs)))
    assert record['settings']['images'] == '3 photographs'
    assert record['settings']['shape'] is None


def test_a_broken_photograph_is_named(photographs):
    (photographs / '1.png').write_bytes(b'no image')
    with pytest.raises(UsageError, match=r'fails on .*1\.png'):
        build_models([TINY_MASK_RCNN], settings(shape=None, images=str(photographs)), None, None)


def test_too_few_photographs_for_a_batch(photographs):
    with pytest.raises(UsageError, match=r'has 3 images .* but --batch is 4'):
        build_models([TINY_MASK_RCNN], settings(shape=None, batch=4, images=str(photographs)), None, None)


def test_types_and_layouts(monkeypatch):
    seen = {}

    def wrapper(span, method):
        def look(*args, **kwargs):
            result = method(*args, **kwargs)
            seen[span.part] = result[0]
            return result

        return look

    for source, part in ((TINY_MASK_RCNN, 'neck'), ('shvit:s1', 'backbone')):
        changed = settings(shape=(64, 64), dtype=torch.bfloat16, channels_last=True)
        (subject,) = build_models([source], changed, None, None)
        with instrumented(subject.model, [Span(part, part)], wrapper):
            subject.run()()
        assert seen[part].dtype is torch.bfloat16
        assert seen[part].is_contiguous(memory_format=torch.channels_last)
    assert next(subject.model.parameters()).dtype is torch.bfloat16  # a backbone alone is converted


def test_folded_backbones_compute_the_same():
    plain, folded = (
        build_models(['shvit:s1'], settings(shape=(64, 64), fold=fold), None, None)[0] for fold in (False, True)
    )
    assert folded.prepared[0].endswith('BN folded')
    assert not [m for m in folded.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for one, other in zip(plain.run()(), folded.run()(), strict=True):
        assert torch.allclose(one, other, atol=1e-4 * one.abs().max())


def test_the_papers_conditions():
    assert paper_conditions(CPU) == dict(shape=(512, 512), fold=True, only='backbone', batch=16, threads=1)
    assert paper_conditions(torch.device('cuda'))['batch'] == 32


def test_threads_are_those_asked_for_and_afterwards_those_before(monkeypatch):
    during = []
    first_run = module.TimedModel.first_run
    monkeypatch.setattr(
        module.TimedModel, 'first_run', lambda subject: (during.append(torch.get_num_threads()), first_run(subject))
    )
    before = torch.get_num_threads()
    record = benchmark(['shvit:s1'], settings(shape=(64, 64), threads=2))
    assert during == [2]
    assert torch.get_num_threads() == before
    assert record['environment']['torch']['threads'] == 2


def test_the_hash_of_a_config_is_that_of_its_content(tmp_path):
    copy = tmp_path / 'other_name.py'
    copy.write_text(f'_base_ = {TINY_RETINANET!r}\n')
    same, other = (config_hash(load_config(path)) for path in (TINY_RETINANET, str(copy)))
    assert same == other
    assert config_hash(load_config(TINY_RETINANET, {'model.backbone.with_cp': True})) != same


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(batch=0), '--batch must be at least 1'),
        (dict(runs=0), '--runs must be at least 1'),
        (dict(seconds=0), '--seconds must be above 0'),
        (dict(shape=(31, 64)), '--shape must be at least 32 32'),
        (dict(flush=True), '--flush-l2 is for a GPU'),
        (dict(train=True, only='backbone'), 'leave out --only'),
        (dict(train=True, fold=True), '--train excludes --fold-bn and --deploy'),
        (dict(train=True, images='x', shape=None), 'leave out --images'),
        (dict(images='x'), 'leave out --shape'),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        settings(**changes)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'work').mkdir()
    return tmp_path / 'work'


def test_the_tool_prints_and_writes(folder):
    files = ['r.json', 'r.md', 'r.png']
    result = tool(
        'benchmark', TINY_MASK_RCNN, '--shape', '96', '128', '--threads', '1', '--runs', '2', '--detections', '4',
        '--json', files[0], '--markdown', files[1], '--plot', files[2], cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert 'mask head' in result.stdout and 'unattributed' in result.stdout and 'latency' in result.stdout
    record = read_record(folder / files[0])
    assert record['command'].startswith('python tools/benchmark.py ') and '--detections 4' in record['command']
    assert record['subjects'][0]['counts']['detections'] == [4]
    assert record['ceilings']['matmul_gflop_s'] > 0
    json.dumps(record, allow_nan=False)
    assert '| mask head |' in (folder / 'r.md').read_text()
    assert cv2.imread(str(folder / files[2])) is not None


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['missing.py'], 'no such config: missing.py'),
        ([ROOT / 'configs' / 'shvit_s1_imagenet.py'], 'has a classifier, no detector'),
        ([ROOT / 'configs' / '_base_' / 'schedule_1x.py'], 'has no model'),
        (['shvit:s1', '--only', 'neck'], "it has no part 'neck'"),
        ([TINY_RETINANET, '--only', 'nose'], "has no part 'nose': choose from preprocess, backbone"),
        (['shvit:s1', '--device', 'abacus'], "unknown device 'abacus'"),
        (['shvit:s1', '--json', 'no/such/folder.json'], 'there is no such folder for --json: no/such'),
        (['shvit:s1', '--plot', 'plot.svg'], 'ends in .png'),
        (['shvit:s1', 'missing.pth'], 'missing.pth'),
        (['shvit:s1', '--images', '.'], 'shvit:s1 is a backbone alone'),
        (['mmdet::no/such.py'], 'cannot read the config mmdet::no/such.py'),
    ],
)
def test_a_mistake_ends_in_one_sentence(arguments, words, folder):
    result = tool('benchmark', *arguments, cwd=folder)
    assert result.returncode == 2
    assert words in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_cuda_where_there_is_none(folder):
    result = tool('benchmark', 'shvit:s1', '--device', 'cuda', cwd=folder)
    assert result.returncode == 2
    assert 'torch sees 0 GPUs' in result.stderr
