"""ExecuTorch programs: what they compute, who runs their operations, as a file and in the benchmark."""

import re

import pytest
import torch
from phone_parts import CLASSIFIER, MASK_RCNN, SHAPE, trained
from processes import tool
from torch import nn

from shvit_det import UsageError
from shvit_det.export.phone_parts import build_part

pytest.importorskip('executorch', reason="executorch is not here: pip install '.[executorch]'")

from shvit_det.export.phone_export import write_program
from shvit_det.runtimes.executorch import ExecuTorch, Program, count_axes_from_the_end, lower

pytestmark = pytest.mark.slow


class SelfTime(nn.Module):
    """Computes something else while it is exported."""

    def forward(self, images):
        return (images * (1.001 if torch.compiler.is_compiling() else 1.0),)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A tiny detector's neck as a file by the tool, what the tool said, and the part."""
    folder = tmp_path_factory.mktemp('executorch')
    _, checkpoint = trained(MASK_RCNN, folder)
    options = ('--to', 'executorch', '--part', 'backbone+neck', '--shape', *SHAPE, '--out', 'out/neck.pte')
    result = tool('export', MASK_RCNN, checkpoint, *options, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / 'out' / 'neck.pte', result, build_part(MASK_RCNN, checkpoint, 'backbone+neck', SHAPE)


def test_the_file_computes_what_pytorch_does(written):
    path, _, part = written
    program = ExecuTorch(path.read_bytes(), threads=1)
    for seed in range(2):
        image = torch.rand(1, 3, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 255
        found, expected = [*map(torch.from_numpy, program.test_step(image.numpy()))], part.outputs(image)
        assert [out.shape for out in found] == [out.shape for out in expected]
        for out, wanted in zip(found, expected, strict=True):
            assert (out - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_the_tool_says_what_it_wrote(written):
    _, result, _ = written
    *_, first, takes, checked, last = result.stdout.splitlines()
    assert first == 'backbone+neck of tiny_mask_rcnn, weights.pth weights'
    assert 'takes one RGB image of 96x128' in takes and 'stride_4 1x16x24x32' in takes
    match = re.match(r'(\d+) of (\d+) operations on XNNPACK in \d+ pieces; by portable kernels: ', checked)
    assert match and int(match[1]) > 0.85 * int(match[2])
    assert not re.search('group_norm|split|expand|mean|conv', checked), checked
    assert re.fullmatch(r'Written: out/neck\.pte \([\d.]+ MB\)', last)
    assert result.stderr == ''


def test_the_classifier_computes_what_pytorch_does(tmp_path):
    pytest.importorskip('mmpretrain')
    part = build_part(CLASSIFIER, shape=(64, 64))
    summary = write_program(part, tmp_path / 'a.pte')
    assert 'differ from PyTorch by' in summary
    (found,) = ExecuTorch((tmp_path / 'a.pte').read_bytes(), threads=1).test_step(part.example().numpy())
    assert found.shape == (1, 6) and torch.allclose(torch.from_numpy(found), part.outputs(part.example())[0], atol=1e-6)


def test_a_program_that_computes_something_else_is_refused(tmp_path):
    part = build_part(MASK_RCNN, shape=(64, 64))
    object.__setattr__(part, 'module', SelfTime())
    with pytest.raises(UsageError, match=r'computes something else than PyTorch: its outputs differ by 0\.001 of'):
        write_program(part, tmp_path / 'a.pte')
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_named():
    class Decides(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UsageError, match='Decides cannot be exported for ExecuTorch: '):
        lower(Decides(), torch.rand(1, 3, 8, 8))


def test_axes_of_means_are_counted_from_the_end():
    class Means(nn.Module):
        def forward(self, x):
            return x.mean((2, 3), keepdim=True) + x.mean((-2, -1), keepdim=True)

    exported = torch.export.export(Means(), (torch.rand(1, 3, 4, 4),))
    count_axes_from_the_end(exported.graph)
    axes = [node.args[1] for node in exported.graph.nodes if node.target is torch.ops.aten.mean.dim]
    assert axes == [[-2, -1], [-2, -1]]
    program = lower(Means(), torch.rand(1, 3, 4, 4))
    assert (program.delegated, program.delegates, program.portable) == (3, 1, {})


def test_the_summary_counts_what_xnnpack_leaves():
    program = Program(b'', 7, 2, {'aten.view_copy': 3})
    assert program.summary() == '7 of 10 operations on XNNPACK in 2 pieces; by portable kernels: aten.view_copy 3x'
    assert Program(b'', 7, 1, {}).summary() == '7 of 7 operations on XNNPACK in 1 piece'


def test_the_threads_are_those_asked_for():
    from executorch.extension.pybindings import portable_lib

    content = lower(nn.ReLU(), torch.rand(1, 3, 4, 4)).content
    for threads in (2, 1):
        ExecuTorch(content, threads)
        assert portable_lib._threadpool_get_thread_count() == threads


def test_an_executorch_for_another_torch_is_named():
    program = ExecuTorch(lower(nn.ReLU(), torch.rand(1, 3, 4, 4)).content, threads=1)
    with pytest.raises(UsageError, match=r'ExecuTorch [\d.]+ cannot run this: .*; each of its releases is for one of'):
        program.test_step(torch.rand(1, 3, 5, 4).numpy())  # which fails in the runtime likewise
