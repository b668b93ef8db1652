"""Checkpoints of the Hugging Face hub, from a server on this machine that speaks its protocol."""

import os
import subprocess
import sys

import pytest
import torch
from checkpoint_files import TINY, refusal
from hub_server import COMMITS, hub_with
from paths import ROOT
from safetensors.torch import save
from serving import head, serving

from shvit_det import SHViT, load_checkpoint
from shvit_det.checkpoint import fetch, hub
from shvit_det.checkpoint.fetch import find_checkpoint

constants = pytest.importorskip('huggingface_hub.constants', reason='huggingface_hub is not installed')
file_download = pytest.importorskip('huggingface_hub.file_download')
FILE = 'timm/shvit_tiny/model.safetensors'
SOURCE = 'hf-hub:timm/shvit_tiny'


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Empty caches and no patience; the packages have read the environment already."""
    monkeypatch.setenv('NO_PROXY', '127.0.0.1,localhost')
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'torch'))
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(file_download.time, 'sleep', lambda seconds: None)
    monkeypatch.setattr(fetch, 'PAUSE_S', 0.01)
    return tmp_path / 'hub'


def use_endpoint(monkeypatch, endpoint):
    """Do what HF_ENDPOINT does, which was read when the package was imported."""
    monkeypatch.setattr(constants, 'ENDPOINT', endpoint)
    template = '/{repo_id}/resolve/{revision}/{filename}'
    for module in (constants, file_download):  # older releases have copies of it
        monkeypatch.setattr(module, 'HUGGINGFACE_CO_URL_TEMPLATE', endpoint + template, raising=False)


@pytest.fixture
def hub_of(monkeypatch):
    """Return a function that serves an answer as the hub."""

    def serve(answer):
        server = serving(answer)
        started = server.__enter__()
        servers.append(server)
        use_endpoint(monkeypatch, started.url.partition('/v1/')[0])
        return started

    servers = []
    yield serve
    for server in servers:
        server.__exit__(None, None, None)


def weights():
    torch.manual_seed(0)
    model = SHViT(TINY)
    return model, save(model.state_dict())


def test_weights_load_from_a_repository_and_then_offline(hub_of, caches, log):
    source, content = weights()
    server = hub_of(hub_with({FILE: content}))
    target = SHViT(dict(TINY))
    load_checkpoint(target, SOURCE)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)
    asked = len(server.requests)
    path = find_checkpoint(SOURCE)
    assert path.is_relative_to(caches) and path.name == 'model.safetensors' and path.read_bytes() == content
    assert len(server.requests) == asked
    assert f'{SOURCE}: backbone' in log.text


def test_a_revision_and_the_second_name_are_found(hub_of):
    hub_of(hub_with({'a/b/pytorch_model.bin': b'weights'}))
    path = find_checkpoint('hf-hub:a/b@v2')
    assert path.read_bytes() == b'weights' and COMMITS['v2'] in path.parts and path.name == 'pytorch_model.bin'
    assert COMMITS['main'] in find_checkpoint('hf-hub:a/b').parts
    assert find_checkpoint(f'hf-hub:a/b@{COMMITS["v2"]}') == path
    assert 'its sha256 is' in refusal(find_checkpoint, 'hf-hub:a/b', sha256='0' * 8)


@pytest.mark.parametrize(
    'files, source, words',
    [
        ({'a/c/x': b''}, 'hf-hub:a/b', 'cannot download model.safetensors of hf-hub:a/b (there is no such repository'),
        (
            {'a/b/model.safetensors': b''},
            'hf-hub:a/b@v9',
            'model.safetensors of hf-hub:a/b@v9 (it has no such revision)',
        ),
        ({'a/b/model.safetensors': 401}, 'hf-hub:a/b', 'set HF_TOKEN to a token'),
        ({'a/b/model.safetensors': 403}, 'hf-hub:a/b', '(access has to be granted on its page'),
        ({'a/b/other.bin': b''}, 'hf-hub:a/b', 'hf-hub:a/b has neither model.safetensors nor pytorch_model.bin'),
        ({}, 'hf-hub:shvit_s4', 'write hf-hub:ORGANISATION/NAME'),
    ],
    ids=['no repository', 'no revision', 'gated', 'not granted', 'no file', 'no name'],
)
def test_a_refusal_names_repository_file_and_reason(files, source, words, hub_of, caches):
    hub_of(hub_with(files))
    assert words in refusal(find_checkpoint, source)
    assert not list(caches.rglob('*.safetensors'))


def test_a_broken_off_download_is_named_and_leaves_no_file(hub_of, caches):
    hub_of(hub_with({FILE: b'x' * 10_000}, cut_off=True))
    assert f'cannot download model.safetensors of {SOURCE} (' in refusal(find_checkpoint, SOURCE)
    assert not list(caches.rglob('*.safetensors'))


def test_a_hub_that_is_not_there_is_named_at_once(monkeypatch):
    use_endpoint(monkeypatch, 'http://127.0.0.1:9')
    assert '] Connection refused): name another' in refusal(find_checkpoint, SOURCE)


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(hub, 'PACKAGE', 'a_package_that_is_not_there')
    assert refusal(find_checkpoint, SOURCE).endswith('not installed: pip install a_package_that_is_not_there')


# ----- the second way to the ImageNet weights


@pytest.fixture
def authors(monkeypatch):
    """The authors' release on a server that refuses every file."""
    with serving(lambda handler: head(handler, 503, 0)) as server:
        url = server.url
        monkeypatch.setattr(fetch, 'HUB_COPIES', {url: SOURCE})
        monkeypatch.setattr(fetch, 'AUTHORS_RELEASE', url.removesuffix('shvit_s1.pth'))
        yield url, server


def test_the_hub_is_taken_where_the_release_cannot_be_reached(authors, hub_of, log):
    url, server = authors
    source, content = weights()
    hub_of(hub_with({FILE: content}))
    target = SHViT(dict(TINY), init_cfg=dict(type='SHViTPretrained', checkpoint=url))
    target.init_weights()
    assert torch.equal(target.patch_embed[0].c.weight, source.patch_embed[0].c.weight)
    assert (
        f'{url} cannot be downloaded (HTTP status 503 Service Unavailable, tried 3 times): taken from {SOURCE}'
        in log.text
    )
    asked = len(server.requests)
    find_checkpoint(url)
    assert len(server.requests) == asked
    assert f'{url}: taken from {SOURCE}, which was downloaded before' in log.text
    assert 'taken from' not in refusal(find_checkpoint, url, sha256='0' * 8)  # which is of the authors' file


def test_both_ways_are_named_where_neither_works(authors, hub_of):
    hub_of(hub_with({}))
    with pytest.raises(ValueError, match='503') as caught:
        find_checkpoint(authors[0])
    assert f'model.safetensors of {SOURCE} (there is no such repository' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_every_imagenet_weight_of_the_authors_has_a_copy():
    assert fetch.HUB_COPIES.keys() == {
        fetch.AUTHORS_RELEASE + name for name in fetch.AUTHORS_FILES if name[:5] == 'shvit'
    }


@pytest.mark.slow
def test_a_tool_reads_the_hub_that_the_environment_names(hub_of, tmp_path):
    server = hub_of(hub_with({FILE: weights()[1]}))
    environment = os.environ | dict(HF_ENDPOINT=server.url.partition('/v1/')[0], HF_HOME=str(tmp_path / 'home'))
    command = [
        sys.executable,
        str(ROOT / 'tools/convert_checkpoint.py'),
        SOURCE,
        str(tmp_path / 'new.pth'),
        '--to',
        'timm',
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'new.pth').is_file() and list((tmp_path / 'home').rglob('model.safetensors'))
    server.requests.clear()
    again = subprocess.run(command, env=environment | dict(HF_HUB_OFFLINE='1'), capture_output=True, text=True)
    assert again.returncode == 0 and server.requests == []
