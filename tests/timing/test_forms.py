"""One source in several forms within one benchmark: prefixes, what they change, and other runtimes."""

import re
import sys

import numpy as np
import pytest
import timing_records as cases
import torch
from processes import tool
from timed import TINY_MASK_RCNN, TINY_RETINANET, settings
from torch import nn

from shvit_det import UsageError, kernels
from shvit_det.deployment import is_deployed
from shvit_det.runtimes.agreement import check_agreement
from shvit_det.timing import benchmark as module
from shvit_det.timing import other_runtimes as runtimes
from shvit_det.timing.benchmark import benchmark
from shvit_det.timing.model_builder import build_models
from shvit_det.timing.other_runtimes import exported
from shvit_det.timing.published import published_for
from shvit_det.timing.record import Ceilings
from shvit_det.timing.results import markdown_report, terminal_report
from shvit_det.timing.settings import settings_with, split_prefixes
from shvit_det.timing.timed_model import compile_frozen

pytestmark = pytest.mark.slow

SMALL = dict(shape=(64, 64))
DEPLOYED = 'deployed' if kernels.load() is None else 'deployed, own kernels'
_packs_bfloat16 = getattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False)


class OneMap(nn.Module):
    """A backbone with one feature map, whose scale changes when it is exported."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.scale = scale

    def forward(self, x):
        exporting = torch.jit.is_tracing() or torch.compiler.is_compiling()
        return [self.conv(x) * (self.scale if exporting else 1.0)]


@pytest.fixture(autouse=True)
def known_ceilings(monkeypatch):
    """They take a second and have tests of their own."""
    rates = {torch.float32: 100.0, torch.bfloat16: 400.0}
    monkeypatch.setattr(
        module, 'measure_ceilings', lambda _, dtype: Ceilings(matmul_gflop_s=rates[dtype], matmul_by='', copy_gb_s=20)
    )


@pytest.fixture
def no_compiler(monkeypatch):
    """Let ``torch.compile`` return what it is given, and list its arguments."""
    calls = []
    monkeypatch.setattr(torch, 'compile', lambda function, **how: (calls.append(how), function)[1])
    return calls


@pytest.fixture(params=runtimes.RUNTIMES)
def runtime(request):
    for package in runtimes.RUNTIMES[request.param].packages:
        extra = runtimes.RUNTIMES[request.param].extra
        pytest.importorskip(package, reason=f"{package} is not here: pip install '.[{extra}]'")
    return request.param


@pytest.fixture
def openvino():
    pytest.importorskip('onnx', reason="onnx is not here: pip install '.[runtimes]'")
    return pytest.importorskip('openvino', reason="openvino is not here: pip install '.[runtimes]'")


@pytest.mark.parametrize(
    'named, forms, source',
    [
        ('shvit:s4', [], 'shvit:s4'),
        ('mmdet::a/b.py', [], 'mmdet::a/b.py'),
        ('timm:hf-hub:timm/resnet50', [], 'timm:hf-hub:timm/resnet50'),
        ('deployed:mmdet::a/b.py', ['deployed'], 'mmdet::a/b.py'),
        ('compiled:bfloat16:deployed:configs/a.py', ['compiled', 'bfloat16', 'deployed'], 'configs/a.py'),
        ('channels_last:compiled:timm:shvit_s4', ['channels_last', 'compiled'], 'timm:shvit_s4'),
        ('bfloat16:openvino:shvit:s4', ['bfloat16', 'openvino'], 'shvit:s4'),
    ],
)
def test_prefixes_are_taken_off_in_any_order(named, forms, source):
    assert split_prefixes(named) == (forms, source)


def test_a_file_may_have_a_colon_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine:1.py').write_text('')
    assert split_prefixes('deployed:mine:1.py') == (['deployed'], 'mine:1.py')


@pytest.mark.parametrize(
    'named, words',
    [
        ('complied:shvit:s4', 'no prefix complied: as in complied:shvit:s4, choose from deployed:, compiled:'),
        ('deployed:deployed:shvit:s4', 'has the prefix deployed: twice'),
        ('bfloat16:float16:shvit:s4', 'both bfloat16: and float16:'),
        ('openvino:onnxruntime:shvit:s4', 'both openvino: and onnxruntime:'),
        ('compiled:onnxruntime:shvit:s4', 'onnxruntime: compiles and lays out by itself, leave out compiled:'),
        ('openvino:deployed:shvit:s4', 'leave out deployed:'),
        ('channels_last:openvino:shvit:s4', 'leave out channels_last:'),
        ('openvino:configs/a.py', 'openvino: is for a backbone alone'),
    ],
)
def test_what_makes_no_sense_is_refused(named, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        split_prefixes(named)


def test_a_prefix_changes_the_settings_of_its_subject():
    common = settings(dtype=torch.bfloat16, channels_last=True, deploy=True, compile='max-autotune')
    assert settings_with([], common) == common
    own = settings_with(['deployed', 'float32', 'compiled'], settings())
    assert (own.deploy, own.convert, own.dtype, own.compile) == (True, True, torch.float32, 'default')
    assert settings_with(['compiled'], common).compile == 'max-autotune'
    assert not settings_with(['deployed'], common).convert  # --dtype means autocast, as before
    assert settings_with(['channels_last'], settings()).channels_last


def test_a_runtime_takes_what_concerns_pytorch_from_nobody(runtime):
    own = settings_with([runtime, 'float32'], settings(channels_last=True, deploy=True, compile='default'))
    assert (own.runtime, own.fold) == (runtime, True)
    assert not (own.channels_last or own.deploy or own.compile)


@pytest.mark.parametrize(
    'forms, changes, words',
    [
        (['onnxruntime', 'bfloat16'], {}, 'onnxruntime: runs in float32, not in bfloat16'),
        (['onnxruntime'], dict(dtype=torch.bfloat16), 'onnxruntime: runs in float32, not in bfloat16'),
        (['openvino', 'float16'], {}, 'openvino: runs in float32 or bfloat16, not in float16'),
        (['openvino'], dict(train=True), '--train excludes'),
        (['deployed'], dict(train=True), '--train excludes'),
    ],
)
def test_settings_that_do_not_go_with_a_form_are_refused(forms, changes, words):
    with pytest.raises(UsageError, match=words):
        settings_with(forms, settings(**changes))


@pytest.mark.parametrize(
    'name, extra', [('onnxruntime', 'runtimes'), ('openvino', 'runtimes'), ('executorch', 'executorch')]
)
def test_a_missing_runtime_is_named_before_anything_is_built(name, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', sys)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"{name}: needs {name}.*pip install 'shvit_det\[{extra}\]'"):
        build_models([f'{name}:shvit:s1'], settings(**SMALL), None, None)


def test_each_subject_has_its_own_type_and_layout():
    sources = ['shvit:s1', 'channels_last:shvit:s1', 'deployed:shvit:s1', 'channels_last:bfloat16:shvit:s1']
    subjects = build_models(sources, settings(**SMALL), None, None)
    assert [subject.name for subject in subjects] == [subject.source for subject in subjects] == sources
    assert [is_deployed(subject.model) for subject in subjects] == [False, False, True, False]
    features = [subject.run()()[0] for subject in subjects]
    assert [f.dtype for f in features] == [torch.float32, torch.float32, torch.float32, torch.bfloat16]
    last = [f.is_contiguous(memory_format=torch.channels_last) for f in features]
    assert (last[0], last[1], last[3]) == (False, True, True)  # packed layers return NHWC in any case
    assert subjects[2].prepared == [DEPLOYED] and subjects[3].prepared == ['converted to bfloat16']
    for other in features[1:]:
        assert (features[0] - other).abs().max() < 3e-2 * features[0].abs().max()


@pytest.mark.skipif(not _packs_bfloat16(), reason='oneDNN packs no bfloat16 for this processor')
def test_a_deployed_backbone_is_converted_to_its_type():
    plain, converted = build_models(['shvit:s1', 'bfloat16:deployed:shvit:s1'], settings(**SMALL), None, None)
    assert is_deployed(converted.model) and converted.prepared == [DEPLOYED, 'converted to bfloat16']
    expected, features = (subject.run()()[0] for subject in (plain, converted))
    assert features.dtype is torch.bfloat16
    assert (expected - features).abs().max() < 3e-2 * expected.abs().max()


def test_a_detector_runs_under_autocast_in_another_type():
    plain, other = build_models([TINY_RETINANET, f'bfloat16:{TINY_RETINANET}'], settings(), None, None)
    assert other.name == 'bfloat16:tiny_retinanet'
    assert (plain.prepared, other.prepared) == ([], ['autocast to bfloat16'])
    assert plain.settings.dtype is torch.float32
    assert next(other.model.parameters()).dtype is torch.float32
    dtypes = []
    for subject in (plain, other):
        subject.model.backbone.register_forward_hook(lambda _, args, outs: dtypes.append(outs[0].dtype))
        subject.first_run()
    assert dtypes == [torch.float32, torch.bfloat16]


def test_a_deployed_detector_gets_its_type_from_deploy(monkeypatch):
    asked = []

    def deploy(model, dtype=None, **how):
        asked.append(dtype)
        raise UsageError('as deploy says')

    monkeypatch.setattr('shvit_det.timing.model_builder.deploy', deploy)
    for source, common in (('bfloat16:deployed:', {}), ('deployed:', dict(dtype=torch.bfloat16))):
        with pytest.raises(UsageError, match='as deploy says'):
            build_models([f'{source}{TINY_MASK_RCNN}'], settings(**common), None, None)
    assert asked == [torch.bfloat16, None]


@pytest.mark.parametrize('source', ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'])
def test_what_has_no_shvit_has_no_deployed_or_plain_form(source):
    for form in ('deployed', 'plain'):
        with pytest.raises(UsageError, match=f'{form}: is for what has a SHViT, and {source} has none'):
            build_models([f'{form}:{source}'], settings(), None, None)


def test_our_own_kernels_are_left_as_they_are(no_compiler):
    if kernels.load() is None:
        pytest.skip('there are no kernels for this processor')
    (subject,) = build_models(['compiled:deployed:shvit:s1'], settings(**SMALL), None, None)
    subject.compile()
    assert subject.prepared == ['deployed, own kernels', 'nothing left to compile']
    assert not no_compiler


def test_one_subject_is_compiled_by_itself(no_compiler, monkeypatch):
    monkeypatch.setattr(kernels, 'load', lambda: None)
    record = benchmark(['shvit:s1', 'compiled:shvit:s1', 'compiled:deployed:shvit:s1'], settings(**SMALL))
    plain, compiled, deployed = record['subjects']
    assert [subject['compile_s'] is None for subject in record['subjects']] == [True, False, False]
    assert [subject['prepared'] for subject in record['subjects']] == [
        [],
        ['compiled with frozen weights'],
        ['deployed', 'compiled with frozen weights'],
    ]
    assert no_compiler == [dict(dynamic=False), dict(options=dict(freezing=True))]
    macs = {subject['cost'][0]['macs'] for subject in (plain, compiled, deployed)}
    assert len(macs) == 1  # counted before it is compiled


def test_frozen_weights_are_no_inputs_of_the_graph(monkeypatch):
    """What inductor packs; a global setting decides it when dynamo traces, also for a new size."""
    inputs = []

    def backend(graph, examples):
        inputs.append(len(examples))
        return graph.forward

    compile_with = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda function, **how: compile_with(function, backend=backend, **how))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    frozen = compile_frozen(model.forward)
    with torch.no_grad():
        for size in (8, 16, 8):
            image = torch.rand(1, 3, size, size)
            assert torch.allclose(frozen(image), model(image))
    assert inputs == [1, 1]  # the image; the third call traces nothing
    assert not torch._inductor.config.freezing
    torch._dynamo.reset()


def test_a_subject_in_another_type_is_held_against_the_ceilings_of_that_type():
    record = benchmark(['shvit:s1', 'bfloat16:shvit:s1'], settings(**SMALL))
    plain, other = record['subjects']
    assert record['ceilings']['matmul_gflop_s'] == 100
    assert 'dtype' not in plain and 'ceilings' not in plain
    assert (other['dtype'], other['ceilings']['matmul_gflop_s']) == ('bfloat16', 400)
    assert 'in bfloat16: 400 GFLOP/s matrix product' in terminal_report(record)


def test_shares_in_the_tables_are_of_the_subjects_own_ceilings():
    own = cases.backbone(
        'shvit:s4', 50, dtype='bfloat16', ceilings=Ceilings(**{**cases.CEILINGS, 'matmul_gflop_s': 1e3})
    )
    text = markdown_report(cases.record([cases.backbone('shvit:s4', 50), own]))
    rows = [[cell.strip() for cell in line.split('|')] for line in text.splitlines() if line.startswith('|')]
    column = rows[0].index('% matmul')
    assert [row[column] for row in rows if row[1] == 'shvit:s4'] == ['52.7', '31.6']  # 316 GFLOP/s of 600 and of 1000


def test_a_runtime_computes_the_same_and_costs_what_its_backbone_does(runtime):
    record = benchmark(['shvit:s1', f'{runtime}:shvit:s1'], settings(**SMALL, fold=True))
    ours, theirs = record['subjects']
    assert theirs['prepared'][0] == ours['prepared'][0] and theirs['prepared'][0].endswith('BN folded')
    assert re.fullmatch(r'(ONNX Runtime|OpenVINO|ExecuTorch) [\d.]+, float32', theirs['prepared'][1])
    assert [theirs[key] for key in ('cost', 'parameters', 'input_shape')] == [
        ours[key] for key in ('cost', 'parameters', 'input_shape')
    ]
    assert theirs['compile_s'] is None and theirs['whole']['runs'] == 2
    assert [ratio['subject'] for ratio in record['ratios']] == [f'{runtime}:shvit:s1']


def test_a_runtime_takes_and_gives_numpy_arrays(runtime):
    (subject,) = build_models([f'{runtime}:shvit:s1'], settings(**SMALL, batch=2), None, None)
    expected = subject.run()()
    subject.export()
    assert isinstance(subject.batches[0], np.ndarray) and subject.input_shape() == [2, 3, 64, 64]
    found = subject.run()()
    assert all(isinstance(feature, np.ndarray) for feature in found)
    for one, other in zip(expected, found, strict=True):
        assert np.abs(one.numpy() - other).max() < 1e-4 * np.abs(other).max()


def test_a_backbone_of_timm_in_a_runtime(runtime):
    pytest.importorskip('timm', reason="timm is not here: pip install '.[peers]'")
    record = benchmark([f'{runtime}:timm:mobilenetv3_small_050'], settings(**SMALL))
    assert record['subjects'][0]['prepared'][0].endswith('BN folded')


def test_bfloat16_in_openvino(openvino):
    if 'BF16' not in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        pytest.skip('this processor has no bfloat16 arithmetic')
    record = benchmark(['openvino:shvit:s1', 'bfloat16:openvino:shvit:s1'], settings(**SMALL))
    assert [subject['prepared'][-1].split(', ')[1] for subject in record['subjects']] == ['float32', 'bfloat16']
    assert record['subjects'][1]['dtype'] == 'bfloat16'


def test_openvino_does_not_silently_take_another_type(openvino, monkeypatch):
    monkeypatch.setattr(openvino.Core, 'get_property', lambda *_: ['FP32'])
    with pytest.raises(UsageError, match='needs a processor with bfloat16 arithmetic'):
        exported('openvino', OneMap().eval(), torch.rand(1, 3, 8, 8), 1, torch.bfloat16)


def test_the_threads_of_a_runtime_are_those_asked_for(openvino):
    images = torch.rand(1, 3, 16, 16)
    model = exported('openvino', OneMap().eval(), images, 2, torch.float32)
    properties = model._request.get_compiled_model().get_property
    assert properties('INFERENCE_NUM_THREADS') == 2 and properties('NUM_STREAMS') == 1


def test_other_outputs_are_refused(runtime):
    images = torch.rand(1, 3, 8, 8)
    assert exported(runtime, OneMap().eval(), images, 1, torch.float32)
    with pytest.raises(UsageError, match=r'computes something else than PyTorch: .* differ by 0\.01 of'):
        exported(runtime, OneMap(1.01).eval(), images, 1, torch.float32)


def test_what_cannot_be_exported_is_named():
    pytest.importorskip('onnx', reason="onnx is not here: pip install '.[runtimes]'")

    class Special(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    with pytest.raises(UsageError, match='Special cannot be exported as ONNX'):
        exported('onnxruntime', Special(), torch.rand(1, 3, 8, 8), 1, torch.float32)


def test_feature_maps_are_compared_by_their_largest_magnitude():
    features = [np.array([0.0, 100.0]), np.array([1.0])]
    check_agreement(features, [np.array([0.9, 100.0]), np.array([1.0])], 0.01, '')
    for others, words in (
        ([features[0], np.array([1.02])], r'differ by 0\.02 of'),
        ([features[0], np.array([np.nan])], 'differ by nan'),
        ([features[0]], 'other shapes'),
        ([features[0], np.array([[1.0]])], 'other shapes'),
    ):
        with pytest.raises(UsageError, match=words):
            check_agreement(features, others, 0.01, 'Some Runtime')


def test_what_is_published_of_a_form_is_that_of_its_source():
    assert published_for('compiled:channels_last:timm:resnet50') == published_for('timm:resnet50') is not None
    assert published_for('compiled:timm:wide_resnet50_2') is None
    assert published_for('onnxruntime:shvit:s4') == published_for('shvit:s4') is not None


def test_the_tool_lists_and_takes_the_forms(tmp_path):
    text = tool('benchmark', '--help', cwd=tmp_path).stdout
    assert all(f'{form}:' in text for form in ('deployed', 'compiled', 'channels_last', 'bfloat16', 'onnxruntime'))
    arguments = ['--shape', '64', '64', '--threads', '1', '--runs', '2']
    result = tool('benchmark', 'shvit:s1', '--against', 'bfloat16:shvit:s1', *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert 'bfloat16:shvit:s1' in result.stdout and 'in bfloat16:' in result.stdout
    result = tool('benchmark', 'shvit:s1', '--against', 'complied:shvit:s1', *arguments, cwd=tmp_path)
    assert result.returncode == 2 and 'no prefix complied:' in result.stderr and 'Traceback' not in result.stderr
