"""Core ML packages: what the file holds, and what its program computes when it is run operation by operation."""

import re
import shutil

import pytest
import torch
from phone_parts import CLASSIFIER, MASK_RCNN, SHAPE, trained
from processes import tool
from torch import nn

from shvit_det import UsageError
from shvit_det.export.phone_parts import build_part
from shvit_det.version import __version__

pytest.importorskip('coremltools', reason="coremltools is not here: pip install '.[coreml]'")

from shvit_det.export.phone_export import write_package
from shvit_det.runtimes import coreml
from shvit_det.runtimes.coreml import Package

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A tiny detector's neck as a package by the tool, what the tool said, and the part."""
    folder = tmp_path_factory.mktemp('coreml')
    _, checkpoint = trained(MASK_RCNN, folder)
    options = ('--to', 'coreml', '--part', 'backbone+neck', '--shape', *SHAPE)
    result = tool('export', MASK_RCNN, checkpoint, *options, cwd=folder)
    assert result.returncode == 0, result.stderr
    path = folder / 'tiny_mask_rcnn_backbone_neck.mlpackage'
    return path, result, build_part(MASK_RCNN, checkpoint, 'backbone+neck', SHAPE)


@pytest.fixture(scope='module')
def package(written):
    return Package(written[0])


def test_the_package_states_its_input_outputs_and_origin(package):
    description = package.description.description
    (taken,) = description.input
    image = taken.type.imageType
    assert (taken.name, image.height, image.width) == ('image', *SHAPE)
    assert image.ColorSpace.Name(image.colorSpace) == 'RGB'
    shapes = {given.name: list(given.type.multiArrayType.shape) for given in description.output}
    assert shapes == {f'stride_{s}': [1, 16, -(-SHAPE[0] // s), -(-SHAPE[1] // s)] for s in (4, 8, 16, 32, 64)}
    types = {given.type.multiArrayType.dataType for given in description.output}
    assert types == {description.output[0].type.multiArrayType.FLOAT16}
    meta = description.metadata
    assert meta.shortDescription == 'backbone+neck of tiny_mask_rcnn, for images of 128 x 96 pixels'
    assert meta.versionString == __version__ and meta.license.startswith('MIT') and not meta.author
    assert meta.userDefined['shvit_det.mean'] == '123.675, 116.28, 103.53'
    assert meta.userDefined['shvit_det.weights'] == 'weights.pth'
    assert package.description.specificationVersion == 7  # iOS 16
    assert package.weight_types() == {'float16'}


def test_the_program_in_the_package_computes_what_pytorch_does(package, written):
    part = written[2]
    for seed in range(2):
        image = torch.randint(0, 256, (1, 3, *SHAPE), generator=torch.Generator().manual_seed(seed)).float()
        found = package.run(image, torch.float32)
        assert tuple(found) == part.output_names
        for out, wanted in zip(found.values(), part.outputs(image), strict=True):
            assert 0 < (out - wanted).abs().max() < 1e-2 * wanted.abs().max()  # the weights are rounded


def test_rounding_the_results_too_changes_little_more(package, written):
    image = written[2].example()
    rounded = package.run(image, torch.float16)
    exact = package.run(image, torch.float32)
    for out, wanted in zip(rounded.values(), exact.values(), strict=True):
        assert torch.equal(out, out.half().float())
        assert 0 < (out - wanted).abs().max() < 2e-2 * wanted.abs().max()


def test_the_tool_says_what_it_checked(written):
    _, result, _ = written
    *_, checked, last = result.stdout.splitlines()
    assert re.match(r'\d+ operations of \d+ kinds, weights in float16; run by PyTorch operation by operation', checked)
    assert re.fullmatch(r'Written: tiny_mask_rcnn_backbone_neck\.mlpackage \([\d.]+ MB\)', last)
    assert result.stderr == ''


def test_a_classifier_gives_names(tmp_path):
    pytest.importorskip('mmpretrain')
    part = build_part(CLASSIFIER, shape=(64, 64))
    write_package(part, tmp_path / 'a.mlpackage')
    package = Package(tmp_path / 'a.mlpackage')
    description = package.description.description
    assert description.predictedFeatureName == 'classLabel'
    best, probabilities = package.run(part.example(), torch.float32).values()
    (expected,) = part.outputs(part.example())
    assert best == part.classes[int(expected.argmax())]
    assert (probabilities - expected).abs().max() < 1e-2 * expected.max()
    kinds = [operation.op_type for operation in package.operations]
    assert kinds.count('conv') > 20 and kinds.count('classify') == 1


def test_a_classifier_without_names_gives_an_array(tmp_path):
    pytest.importorskip('mmpretrain')
    part = build_part(CLASSIFIER, shape=(64, 64))
    object.__setattr__(part, 'classes', None)
    write_package(part, tmp_path / 'a.mlpackage')
    (given,) = Package(tmp_path / 'a.mlpackage').description.description.output
    assert given.name == 'probabilities' and list(given.type.multiArrayType.shape) == [1, 6]


def test_numbers_too_large_for_float16_are_refused(tmp_path):
    part = build_part(MASK_RCNN, shape=(64, 64))
    first, *others = [module for module in part.module.modules() if hasattr(module, 'geometry')][:4]
    factor = 5e4 / first.weight.abs().max()  # the weights just fit, sums of their products do not
    first.weight.mul_(factor)
    for other in others:
        other.weight.mul_(factor ** (-1 / 3))
    with pytest.raises(UsageError, match='with float16 arithmetic the package computes something else than PyTorch'):
        write_package(part, tmp_path / 'a.mlpackage')


def test_other_weights_in_the_package_are_noticed(written, tmp_path):
    path, _, part = written
    copied = tmp_path / 'changed.mlpackage'
    shutil.copytree(path, copied)
    (weights,) = copied.rglob('weight.bin')
    content = bytearray(weights.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    weights.write_bytes(content)
    found = Package(copied).run(part.example(), torch.float32)
    expected = part.outputs(part.example())
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found.values(), expected, strict=True))
    assert worst > 2e-2


def test_an_operation_that_is_not_known_is_named(package, written, monkeypatch):
    monkeypatch.delitem(coreml.OPERATIONS, 'conv')
    with pytest.raises(UsageError, match='has the operation conv, which cannot be checked'):
        package.run(written[2].example(), torch.float32)


def test_what_cannot_be_converted_is_named(tmp_path):
    class Special(nn.Module):
        def forward(self, images):
            return (torch.special.bessel_j0(images),)

    part = build_part(MASK_RCNN, shape=(64, 64))
    object.__setattr__(part, 'module', Special())
    with pytest.raises(UsageError, match='the backbone cannot be converted to Core ML: '):
        write_package(part, tmp_path / 'a.mlpackage')
