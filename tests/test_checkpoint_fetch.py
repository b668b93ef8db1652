"""Downloads from a server on this machine that behaves badly in every way that servers do."""

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from serving import head, serving

from shvit_det import SHViT, UsageError, load_checkpoint
from shvit_det.checkpoint import fetch
from shvit_det.checkpoint.fetch import cached_path, find_checkpoint

CONTENT = bytes(range(256)) * 40
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty cache, no proxy, and no patience."""
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr(fetch, 'TIMEOUT_S', 0.3)
    monkeypatch.setattr(fetch, 'PAUSE_S', 0.01)
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    return tmp_path / 'hub' / 'checkpoints'


def whole(handler):
    head(handler, length=len(CONTENT))
    handler.wfile.write(CONTENT)


def ranged(handler):
    """Serve the part that was asked for."""
    start = int(handler.headers['Range'].removeprefix('bytes=').removesuffix('-'))
    assert handler.headers['If-Range'] == '"tag"'
    content = CONTENT[start:]
    head(handler, 206, len(content), ETag='"tag"', Content_Range=f'bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}')
    handler.wfile.write(content)


def cut_off(handler):
    head(handler, length=len(CONTENT), ETag='"tag"')
    handler.wfile.write(CONTENT[:3000])


def stalls(handler):
    cut_off(handler)
    handler.wfile.flush()
    handler.server.stop.wait(5)


def status(code):
    return lambda handler: head(handler, code, 0)


def html(handler):
    page = b'<!DOCTYPE html><html>Sign in</html>'
    head(handler, length=len(page), Content_Type='text/html; charset=utf-8')
    handler.wfile.write(page)


def html_in_disguise(handler):
    page = b'<!DOCTYPE html><html>Sign in</html>'
    head(handler, length=len(page), Content_Type='application/octet-stream')
    handler.wfile.write(page)


def another_part(handler):
    head(handler, 206, 10, ETag='"tag"', Content_Range=f'bytes 7-16/{len(CONTENT)}')
    handler.wfile.write(CONTENT[7:17])


def refusal(url, **options) -> str:
    with pytest.raises(UsageError) as caught:
        find_checkpoint(url, **options)
    return str(caught.value)


def test_a_file_is_fetched_once_and_serves_offline(hub):
    with serving(whole) as server:
        path = find_checkpoint(server.url)
        assert path == hub / 'shvit_s1.pth' and path.read_bytes() == CONTENT
        assert path.stat().st_mode & 0o777 == 0o644
        assert find_checkpoint(server.url) == path
        assert len(server.requests) == 1
    assert find_checkpoint(server.url) == path  # the server is gone
    assert list(hub.iterdir()) == [path]


@pytest.mark.parametrize('trouble', [cut_off, stalls], ids=['cut off', 'stalls'])
def test_an_interrupted_download_goes_on_where_it_stopped(trouble, hub):
    with serving(trouble, ranged) as server:
        assert find_checkpoint(server.url, HASH).read_bytes() == CONTENT
        assert server.requests[1]['Range'] == 'bytes=3000-'


@pytest.mark.parametrize(
    'answers',
    [
        (cut_off, whole),  # the server knows no ranges
        (cut_off, another_part, whole),
        (cut_off, status(416), whole),
        (status(503), status(429), whole),
        (lambda handler: None, whole),  # closes without a word
    ],
    ids=['no ranges', 'another range', 'range refused', 'busy', 'silent'],
)
def test_what_cannot_go_on_starts_over(answers, hub):
    with serving(*answers) as server:
        assert find_checkpoint(server.url).read_bytes() == CONTENT
        assert len(server.requests) == len(answers)


@pytest.mark.parametrize(
    'answer, words, num_requests',
    [
        (status(404), '404', 1),
        (status(403), '403', 1),
        (html, 'web page', 1),
        (html_in_disguise, 'web page', 1),
        (cut_off, 'cut off after 3000 of 10240 bytes, tried 3 times', 3),
        (stalls, 'nothing came for 0.3 s after 3000 bytes, tried 3 times', 3),
        (status(500), '500 Internal Server Error, tried 3 times', 3),
    ],
    ids=['404', '403', 'web page', 'web page in disguise', 'cut off', 'stalls', 'broken'],
)
def test_a_failure_says_what_was_tried_and_what_else_can_be_done(answer, words, num_requests, hub):
    with serving(answer) as server:
        sentence = refusal(server.url)
        assert len(server.requests) == num_requests
    for part in ('cannot download', server.url, words, str(hub / 'shvit_s1.pth'), '--no-pretrained',
                 'model.backbone.init_cfg.checkpoint=FILE'):  # fmt: skip
        assert part in sentence
    assert '\n' not in sentence
    assert list(hub.iterdir()) == []


def test_a_server_that_is_not_there_is_tried_a_few_times(hub):
    with serving(whole) as server:
        pass
    assert 'refused, tried 3 times' in refusal(server.url)


def test_a_folder_that_cannot_be_written_is_named(hub):
    hub.parent.mkdir()
    hub.write_text('a file where the folder should be')
    with serving(whole) as server:
        assert str(hub) in refusal(server.url)
        assert server.requests == []


def test_the_hash_is_checked_of_what_is_fetched_cached_and_local(hub, tmp_path):
    wrong = '0' * 64
    with serving(whole) as server:
        sentence = refusal(server.url, sha256=wrong)
        assert HASH in sentence and wrong in sentence
        assert list(hub.iterdir()) == []  # what is wrong is not kept
        path = find_checkpoint(server.url, HASH[:8].upper())
    assert wrong in refusal(server.url, sha256=wrong)
    assert path.exists()  # what lay there is someone's file
    assert HASH in refusal(str(path), sha256='12345678')
    assert find_checkpoint(str(path), sha256=HASH) == path
    assert "'1234'" in refusal(str(path), sha256='1234')


def test_files_of_one_name_do_not_serve_for_each_other(hub):
    """On Hugging Face every model's file is called model.safetensors."""
    base = 'https://huggingface.co/timm'
    assert cached_path(f'{base}/shvit_s4.in1k/resolve/main/model.safetensors').name == 'shvit_s4.in1k-model.safetensors'
    assert cached_path(f'{base}/shvit_s4.in1k/resolve/v2/a%20b.bin?download=true').name == 'shvit_s4.in1k-v2-a b.bin'
    release = 'https://github.com/ysj9909/SHViT/releases/download/v1.0/shvit_s4.pth'
    assert cached_path(release) == hub / 'shvit_s4.pth'


@pytest.mark.parametrize('source', ['nowhere.pth', 'ftp://example.com/a.pth'])
def test_what_is_no_file_is_named(source):
    sentence = refusal(source)
    assert 'no such checkpoint' in sentence and source in sentence
    assert ('http://' in sentence) == ('://' in source)


def test_the_bar_is_for_terminals_and_for_one_process(monkeypatch, hub):
    class Terminal:
        def __init__(self):
            self.shown = ''

        def isatty(self):
            return True

        def write(self, text):
            self.shown += text

        def flush(self):
            pass

    lengths = []
    for terminal, rank in ((Terminal(), '0'), (Terminal(), '1'), (SimpleNamespace(isatty=lambda: False), '0')):
        monkeypatch.setenv('LOCAL_RANK', rank)
        monkeypatch.setattr(sys, 'stderr', terminal)
        with serving(whole) as server:
            find_checkpoint(server.url).unlink()
        lengths.append(len(getattr(terminal, 'shown', '')))
    assert lengths[0] > 0 and lengths[1:] == [0, 0]


@pytest.mark.parametrize(
    'path', ['..', '../../x', '%2e%2e%2f%2e%2e%2fx', '..%5c..%5cx', 'a/..%2f', '%2fetc%2fx', 'x%00', '.', '', 'C:%5cx']
)
def test_no_url_leads_out_of_the_cache(path, hub):
    for base in (
        'https://example.org/',
        'https://huggingface.co/a/b/resolve/main/',
        'https://huggingface.co/a/../resolve/../',
    ):
        found = cached_path(base + path)
        assert found.parent == hub and found.name not in ('', '.', '..') and '\0' not in found.name


def test_a_model_loads_from_a_url(hub):
    arch = dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), attn_dims=(8, 8, 8))
    source, target = SHViT(arch), SHViT(arch)
    file = Path(hub.parent.parent) / 'file.pth'
    torch.save(source.state_dict(), file)

    def answer(handler):
        head(handler, length=file.stat().st_size)
        handler.wfile.write(file.read_bytes())

    with serving(answer) as server:
        target.init_cfg = dict(
            type='SHViTPretrained', checkpoint=server.url, sha256=hashlib.sha256(file.read_bytes()).hexdigest()
        )
        target.init_weights()
        load_checkpoint(target, server.url)
        assert len(server.requests) == 1
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)
