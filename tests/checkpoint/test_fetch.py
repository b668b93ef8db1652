"""Downloads from a server on this machine that behaves badly in every way that servers do."""

import hashlib
import os
import re
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from paths import ROOT
from serving import head, serving

from shvit_det import SHViT, UsageError, load_checkpoint
from shvit_det.checkpoint import fetch
from shvit_det.checkpoint.fetch import cached_path, find_checkpoint

CONTENT = bytes(range(256)) * 40
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty cache, no proxy, and no patience."""
    monkeypatch.setenv('NO_PROXY', '127.0.0.1,localhost')
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


def own_path(handler):
    """Serve the path that was asked for as the content of the file."""
    content = handler.path.encode()
    head(handler, length=len(content))
    handler.wfile.write(content)


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
        assert path.parent == hub and re.fullmatch('shvit_s1-[0-9a-f]{16}.pth', path.name)
        assert path.read_bytes() == CONTENT
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
    for part in ('cannot download', server.url, words, str(cached_path(server.url)), '--no-pretrained',
                 'model.backbone.init_cfg.checkpoint=FILE'):  # fmt: skip
        assert part in sentence
    assert '\n' not in sentence
    assert list(hub.iterdir()) == []


def test_a_server_that_is_not_there_is_tried_a_few_times(hub):
    with serving(whole) as server:
        pass
    assert 'refused, tried 3 times' in refusal(server.url)


def test_a_folder_that_cannot_be_made_is_named(hub):
    hub.parent.mkdir()
    hub.write_text('a file where the folder should be')
    with serving(whole) as server:
        sentence = refusal(server.url)
        assert server.requests == []
    assert str(hub) in sentence and 'set TORCH_HOME=' in sentence and 'init_cfg.checkpoint=FILE' in sentence


@pytest.fixture
def cache_of_others(monkeypatch):
    """A cache that this process can read but not write to; root, who may write everywhere, is nobody for a while."""
    if not hasattr(os, 'seteuid'):
        pytest.skip('needs the owners and permissions of POSIX')
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Path(folder, 'hub', 'checkpoints')
        checkpoints.mkdir(parents=True)
        Path(folder).chmod(0o755)
        monkeypatch.setattr(torch.hub, '_hub_dir', str(checkpoints.parent))
        user = os.geteuid()

        def hand_over():
            checkpoints.chmod(0o555)
            if user == 0:
                os.seteuid(65534)

        yield checkpoints, hand_over
        os.seteuid(user)
        checkpoints.chmod(0o755)


def test_a_cache_that_cannot_be_written_to_serves_what_it_has(cache_of_others):
    folder, hand_over = cache_of_others
    with serving(own_path) as server:
        here, closed = (server.url.replace('/v1/', f'/{part}/') for part in ('here', 'closed'))
        assert find_checkpoint(here).parent == folder
        find_checkpoint(closed).chmod(0)
        hand_over()
        assert find_checkpoint(here).read_text() == '/here/shvit_s1.pth'
        sentence = refusal(server.url)
        assert len(server.requests) == 2
    assert f'in {folder} (Permission denied): set TORCH_HOME=' in sentence and '\n' not in sentence
    assert refusal(closed, sha256=HASH) == f'cannot read {cached_path(closed)}: Permission denied'


def test_a_file_that_cannot_be_read_or_looked_for_is_named(cache_of_others):
    folder, hand_over = cache_of_others
    (folder / 'inner').mkdir()
    for name in ('closed.pth', 'inner/file.pth'):
        (folder / name).write_bytes(CONTENT)
    (folder / 'closed.pth').chmod(0)
    (folder / 'inner').chmod(0)
    hand_over()
    with pytest.raises(UsageError, match=r'cannot read .*closed\.pth: Permission denied'):
        load_checkpoint(torch.nn.Linear(1, 1), folder / 'closed.pth')
    assert 'no such checkpoint' in refusal(folder / 'inner' / 'file.pth')


def test_without_a_home_folder_a_cache_has_to_be_named(monkeypatch, tmp_path):
    """torch leaves the ~ as it is where it knows of no home, and would make a folder of that name."""
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    monkeypatch.setenv('TORCH_HOME', '~user-that-does-not-exist/torch')
    monkeypatch.chdir(tmp_path)
    with serving(whole) as server:
        sentence = refusal(server.url)
        assert server.requests == []
        assert 'no home folder' in sentence and 'set TORCH_HOME=/a/folder/of/yours' in sentence
        assert list(tmp_path.iterdir()) == []
        monkeypatch.setenv('TORCH_HOME', 'cache')
        assert find_checkpoint(server.url).parent == Path('cache/hub/checkpoints')


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


def test_a_file_that_changed_on_its_server_can_be_fetched_again(hub):
    with serving(own_path, whole) as server:
        path = find_checkpoint(server.url)
        sentence = refusal(server.url, sha256=HASH)
        assert f'remove {path} to download it again' in sentence and len(server.requests) == 1
        path.unlink()
        assert find_checkpoint(server.url, HASH).read_bytes() == CONTENT
    assert 'download' not in refusal(path, sha256='0' * 8)  # of a local file nobody knows a URL


def test_every_url_has_a_file_of_its_own(hub):
    with serving(own_path) as server:
        port = server.url.split(':')[2].split('/')[0]
        urls = [
            f'http://{host}:{port}/{place}'
            for host in ('127.0.0.1', 'localhost')
            for place in (
                'timm/a/resolve/main/model.safetensors', 'timm/b/resolve/main/model.safetensors',
                'timm/b/resolve/v2/model.safetensors', 'run1/best.pth', 'run2/best.pth', 'run1/Best.pth',
                'run1/best.pth?version=2', 'download?file=run1/best.pth', 'download?file=run2/best.pth', 'x' * 300,
                'x' * 301, '%C3%A9' * 100 + '.pth', '',
            )
        ]  # fmt: skip
        for _ in range(2):
            found = {url: find_checkpoint(url) for url in urls}
            assert len(server.requests) == len(urls)
    assert len({path.name.lower() for path in found.values()}) == len(urls)  # also where case makes no difference
    for url, path in found.items():
        assert path.read_text() == url.split(port)[1] and path.parent == hub
        assert re.fullmatch(r'[A-Za-z0-9._+-]{1,150}', path.name)
    assert found[urls[0]].name.startswith('a-model-') and found[urls[0]].suffix == '.safetensors'


def test_spaces_and_letters_of_other_alphabets_are_escaped(hub):
    with serving(own_path) as server:
        path = find_checkpoint(server.url.replace('v1', 'läufe 1'))
    assert path.read_text() == '/l%C3%A4ufe%201/shvit_s1.pth'


def test_downloads_at_the_same_time_do_not_meet(hub):
    together = threading.Barrier(4)

    def answer(handler):
        head(handler, length=len(handler.path))
        handler.wfile.write(handler.path[:5].encode())
        handler.wfile.flush()
        together.wait(10)
        handler.wfile.write(handler.path[5:].encode())

    with serving(answer) as server, ThreadPoolExecutor(4) as pool:
        urls = [server.url.replace('v1', run) for run in ('run1', 'run2', 'run1', 'run2')]
        found = list(pool.map(find_checkpoint, urls))
    assert [path.read_text() for path in found] == [f'/{run}/shvit_s1.pth' for run in ('run1', 'run2', 'run1', 'run2')]
    assert sorted(hub.iterdir()) == sorted(set(found))


# ----- files that torch's hub keeps under their plain name


def test_the_authors_files_are_those_that_the_project_refers_to():
    texts = ''.join(path.read_text() for path in (ROOT / 'configs').rglob('*') if path.is_file())
    assert set(re.findall(r'https?://\S+\.pth', texts)) == {
        fetch.AUTHORS_RELEASE + name for name in fetch.AUTHORS_FILES
    }


@pytest.mark.parametrize('name', fetch.AUTHORS_FILES)
def test_the_authors_weights_are_found_under_their_plain_name(name, hub):
    hub.mkdir(parents=True)
    (hub / name).write_bytes(CONTENT)
    assert find_checkpoint(fetch.AUTHORS_RELEASE + name) == hub / name
    assert find_checkpoint(fetch.AUTHORS_RELEASE + name, HASH) == hub / name


def test_a_plain_name_counts_for_no_other_url_and_no_other_hash(hub, monkeypatch):
    hub.mkdir(parents=True)
    (hub / 'shvit_s1.pth').write_bytes(b'of someone else')
    with serving(whole) as server:
        assert find_checkpoint(server.url).read_bytes() == CONTENT
        for change in ('?raw=1', '#fragment'):
            assert find_checkpoint(server.url + change).read_bytes() == CONTENT
        monkeypatch.setattr(fetch, 'AUTHORS_RELEASE', server.url.replace('v1/shvit_s1.pth', 'release/'))
        url = f'{fetch.AUTHORS_RELEASE}shvit_s1.pth'
        assert find_checkpoint(url) == hub / 'shvit_s1.pth'
        assert find_checkpoint(url, HASH).read_bytes() == CONTENT
        assert find_checkpoint(url) == cached_path(url)  # what was asked for by its hash goes before
        assert find_checkpoint(f'{fetch.AUTHORS_RELEASE}other.pth').read_bytes() == CONTENT
    assert (hub / 'shvit_s1.pth').read_bytes() == b'of someone else'


@pytest.mark.parametrize(
    'source',
    ['nowhere.pth', 'ftp://example.com/a.pth', Path('https://example.com/a.pth'), 'a' * 300, '~user-that-is-not/a.pth',
     '~nowhere.pth', 'a\0b', '//[/a.pth'],
    ids=repr,
)  # fmt: skip
def test_what_is_no_file_is_named(source):
    sentence = refusal(source)
    assert 'no such checkpoint' in sentence and str(source) in sentence
    assert ('http://' in sentence) == ('example.com' in str(source))


@pytest.mark.parametrize(
    'url', ['http://', 'http://[/a.pth', 'http://127.0.0.1:port/a.pth', f'http://{"a" * 70}.com/a.pth']
)
def test_what_is_no_url_is_named(url):
    assert f'cannot download the weights {url} (' in refusal(url)


def test_a_file_may_be_called_like_a_home_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path('~best.pth').write_bytes(CONTENT)
    assert find_checkpoint('~best.pth').read_bytes() == CONTENT


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
