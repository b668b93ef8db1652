"""Loading and moving lay the weights of a deployed model out anew; it is not trained, and levels that change count."""

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
from deployed_models import TINY, agree, backbone, detector
from mmengine.runner.checkpoint import load_state_dict
from timed import TINY_MASK_RCNN, TINY_RETINANET
from torch import nn

from shvit_det import SHViT, SHViTFPN, UsageError, deploy, kernels
from shvit_det.models.pyramid import FeaturePyramid

pytestmark = pytest.mark.slow


@pytest.fixture(params=['own kernels', 'oneDNN'])
def form(request, monkeypatch):
    if request.param == 'oneDNN':
        monkeypatch.setattr(kernels, 'load', lambda: None)
    elif kernels.load() is None:
        pytest.skip('there are no kernels for this processor')


def other_state(model):
    return {name: 0.9 * value for name, value in model.state_dict().items()}


def load_in_inference_mode(model, state):
    with torch.inference_mode():
        model.load_state_dict(state)


LOADING = {
    'load_state_dict': lambda model, state: model.load_state_dict(state),
    'in inference mode': load_in_inference_mode,
    'assign': lambda model, state: model.load_state_dict(state, assign=True),
    "mmengine's": lambda model, state: load_state_dict(model, state, strict=True),
    'of the parts': lambda model, state: [
        part.load_state_dict({key[len(name) + 1 :]: state[key] for key in state if key.startswith(f'{name}.')})
        for name, part in model.named_children()
    ],
}


@pytest.mark.parametrize('loading', LOADING)
@pytest.mark.parametrize('made_in_inference_mode', [False, True])
def test_loaded_weights_are_used(form, loading, made_in_inference_mode):
    trained, x = backbone(TINY), torch.randn(1, 3, 64, 80)
    with torch.inference_mode(made_in_inference_mode), torch.no_grad():
        deployed = deploy(trained)
        before = deployed(x)
        fresh = deploy(trained)
    fresh.load_state_dict(other_state(fresh))
    LOADING[loading](deployed, other_state(deployed))
    with torch.no_grad():
        found = deployed(x)
        agree(fresh(x), found, 1e-6)
    assert not torch.equal(before[2], found[2])


MOVES = {
    'half': lambda model: model.half(),
    'bfloat16': lambda model: model.bfloat16(),
    'to': lambda model: model.to(torch.bfloat16),
    'there and back': lambda model: model.double().float(),
    'shared': lambda model: model.share_memory(),
    'copied': copy.deepcopy,
    'pickled': lambda model: pickle.loads(pickle.dumps(model)),
    'other layout': lambda model: model.to(memory_format=torch.contiguous_format),
    'apply': lambda model: model._apply(lambda x: x.clone()),
}


@pytest.mark.parametrize('move', MOVES)
def test_moved_models_compute_what_they_should(form, move):
    trained, x = backbone(TINY), torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        right = trained(x)
        deployed = deploy(trained)
        deployed(x)
        moved = MOVES[move](deployed)
        dtype = next(moved.parameters()).dtype
        for _ in range(2):
            found = moved(x.to(dtype))
            assert found[0].dtype is dtype
            agree(right, [out.float() for out in found], 1e-4 if dtype is torch.float32 else 0.1)


def test_moved_data_is_followed():
    """What ``_apply`` puts in the place of the weights is used, not what was packed before."""
    deployed, x = deploy(backbone(TINY)), torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        before = deployed(x)
        zero = deployed._apply(torch.zeros_like)(x)
    assert before[0].any() and not any(out.any() for out in zero)


def test_a_saved_module_holds_no_packed_weights(form):
    deployed = deploy(backbone(TINY))

    def size():
        file = io.BytesIO()
        torch.save(deployed, file)
        return len(file.getvalue())

    before = size()
    with torch.no_grad():
        deployed(torch.randn(1, 3, 64, 64))
    assert size() == before


MODELS = {
    'backbone': lambda: backbone(TINY),
    'neck': lambda: SHViTFPN([16, 24, 32], 8).eval(),
    'two-stage': lambda: detector(TINY_MASK_RCNN).model,
    'one-stage': lambda: detector(TINY_RETINANET).model,
}


@pytest.mark.parametrize('name', MODELS)
def test_training_is_refused_before_anything_changes(name):
    deployed = deploy(MODELS[name]().train())
    for part in (deployed, copy.deepcopy(deployed), *deployed.children()):
        with pytest.raises(UsageError, match='cannot be trained'):
            part.train()
        assert not any(module.training for module in part.modules())
        assert part.eval() is part and part.train(False) is part
    deployed.requires_grad_(True)
    assert all(parameter.requires_grad for parameter in deployed.parameters())


@pytest.fixture
def two_stage():
    trained = detector(TINY_MASK_RCNN).model
    deployed = deploy(trained)
    assert hasattr(deployed.rpn_head, 'rpn_finest')
    return trained, deployed


X = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def doubled(features):
    features[0].mul_(2)
    return features


BETWEEN = {
    'nothing': lambda features: features,
    'in place': doubled,
    'in place, of a view': lambda features: features[0][:, :3].add_(1) is None or features,
    'as a list': list,
    'another level': lambda features: (features[0] + 1, *features[1:]),
    'the other image': lambda features: tuple(feature.flip(0) for feature in features),
}


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('between', BETWEEN)
def test_the_rpn_sees_what_happens_to_the_levels(two_stage, between, mode):
    outputs = []
    with mode():
        for model in two_stage:
            features = BETWEEN[between](model.extract_feat(X))
            outputs.append(model.rpn_head(features))
            outputs.append(model.rpn_head(features))
    for part in (0, 1):
        for found in outputs[1:]:
            agree(outputs[0][part], found[part], 1e-4)


def test_gradients_of_the_image_pass_through_the_rpn(two_stage):
    gradients = []
    for model in two_stage:
        image = X.clone().requires_grad_()
        model.rpn_head(model.extract_feat(image))[0][0].square().mean().backward()
        gradients.append(image.grad)
    agree(gradients[:1], gradients[1:], 1e-3)


def test_levels_of_another_neck_are_not_taken_for_those_of_its_own(two_stage):
    trained, deployed = two_stage
    for parameter in trained.neck.parameters():
        nn.init.normal_(parameter, std=0.1)
    other = deploy(trained)
    with torch.no_grad():
        features = other.neck(deployed.backbone(X))
        assert features.origin is not None
        agree(trained.rpn_head(features.peek())[0], deployed.rpn_head(features)[0], 1e-4)


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_hooks_that_change_a_level_in_place(two_stage, mode):
    for model in two_stage:
        model.neck.register_forward_hook(lambda _, inputs, outputs: doubled(outputs) and None)
    with mode():
        right, found = (model.rpn_head(model.extract_feat(X)) for model in two_stage)
    agree(right[0], found[0], 1e-4)


def test_nothing_is_kept_when_the_rpn_does_not_run(two_stage):
    deployed = two_stage[1]
    with torch.no_grad():
        features = deployed.extract_feat(X)
    assert isinstance(features, FeaturePyramid)
    kept = weakref.ref(features.peek()[0]), weakref.ref(features.origin.source)
    del features
    gc.collect()
    assert kept[0]() is kept[1]() is None


def test_threads_share_a_detector(two_stage):
    trained, deployed = two_stage
    found = {}

    def work(index):
        with torch.no_grad():
            for _ in range(5):
                features = deployed.extract_feat(X + index)
                found[index] = deployed.rpn_head(features)[0]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with torch.no_grad():
        for index in range(4):
            agree(trained.rpn_head(trained.extract_feat(X + index))[0], found[index], 1e-4)


def test_an_untrained_model_takes_a_deployed_state():
    first, second = deploy(backbone(TINY)), deploy(SHViT(TINY).eval())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        second(x)
        second.load_state_dict(first.state_dict())
        assert all(torch.equal(one, other) for one, other in zip(first(x), second(x), strict=True))


def test_a_state_with_the_former_names_of_the_rpns_composed_layer_loads(two_stage):
    _, deployed = two_stage
    state = {}
    for name, value in deployed.state_dict().items():
        former = name.replace('neck.', 'neck.neck.', 1) if name.startswith('neck.') else name
        state[former.replace('rpn_head.rpn_finest.', 'neck.')] = value + 1
    assert 'neck.hidden.weight' in state and 'neck.neck.finer_convs.0.weight' in state
    deployed.load_state_dict(state)
    loaded = deployed.state_dict()
    assert torch.equal(loaded['rpn_head.rpn_finest.hidden.weight'], state['neck.hidden.weight'])
    assert torch.equal(loaded['neck.finer_convs.0.weight'], state['neck.neck.finer_convs.0.weight'])


def test_parameters_are_ordinary_even_if_made_in_inference_mode():
    with torch.inference_mode():
        deployed = deploy(backbone(TINY))
    assert not any(parameter.is_inference() for parameter in deployed.parameters())
    assert all(isinstance(parameter, nn.Parameter) for parameter in deployed.parameters())
