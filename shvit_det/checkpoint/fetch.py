"""From a path or a URL to a local file; what is downloaded stays in torch's hub cache and serves offline."""

import hashlib
import os
import re
import sys
import tempfile
import time
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlparse
from urllib.request import Request, urlopen

import torch
from torch.hub import tqdm  # the real one where it is installed

from ..errors import UsageError
from .reading import head_of, wrong_kind

ATTEMPTS = 3
TIMEOUT_S = 30.0  # without a byte
PAUSE_S = 1.0  # before the second attempt, doubled before each further one
CHUNK = 1 << 17


class InterruptedDownloadError(Exception):
    """A download that may go well the next time; the message says what happened."""


class HopelessDownloadError(Exception):
    """A download that would fail again; the message says why."""


def find_checkpoint(source: str | Path, sha256: str | None = None) -> Path:
    """Return the local file of a path or URL; a URL is downloaded once, into torch's hub cache.

    Args:
        source: A file, or an http(s) URL.
        sha256: The hash that the file must have, in full or its first digits (at least 8).

    Raises:
        UsageError: If there is no such file, the URL cannot be had, or the hash is another.
    """
    if sha256 is not None and not re.fullmatch(r'[0-9a-fA-F]{8,64}', sha256):
        raise UsageError(f'sha256 is 8 to 64 hexadecimal digits, but got {sha256!r}')
    scheme = urlparse(str(source)).scheme
    if scheme in ('http', 'https'):
        path = cached_path(str(source))
        if not path.is_file():
            fetch(str(source), path, sha256)
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            kind = ' (URLs have to start with http:// or https://)' if '://' in str(source) else ''
            raise UsageError(f'no such checkpoint: {source}{kind}')
    if sha256 is not None and not (found := hash_of(path)).startswith(sha256.lower()):
        raise UsageError(f'{path} is not the file that was meant: its sha256 is {found}, expected was {sha256}')
    return path


def cached_path(url: str) -> Path:
    """Return where the file of a URL lies in torch's hub cache.

    It keeps its name, of which nothing leads out of the cache. On Hugging Face all files are called
    ``model.safetensors``, so that the repository's name is put before it, and the revision's unless it is main.
    """
    parsed = urlparse(url)
    parts = [part for part in re.split(r'[/\\\0]', unquote(parsed.path)) if part.strip('.')]
    name = parts[-1] if parts else 'checkpoint'
    if parsed.hostname in ('huggingface.co', 'hf.co') and len(parts) >= 5 and parts[2] == 'resolve':
        name = '-'.join([parts[1], *([parts[3]] if parts[3] != 'main' else []), name])
    return Path(torch.hub.get_dir()) / 'checkpoints' / name


def hash_of(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def fetch(url: str, path: Path, sha256: str | None = None) -> None:
    """Download into ``path``, which is whole as soon as it exists; what was interrupted goes on where it stopped.

    Raises:
        UsageError: If it cannot be had, after a few attempts; it says what was tried and what else can be done.
    """
    part = path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f'{path.name}.', suffix='.part', dir=path.parent)
        part = Path(name)
        with os.fdopen(handle, 'wb') as file:
            download(url, file)
            file.flush()
            os.fsync(file.fileno())
        if wrong := wrong_kind(head_of(part)):
            raise HopelessDownloadError(wrong)
        if sha256 is not None and not (found := hash_of(part)).startswith(sha256.lower()):
            raise HopelessDownloadError(f'its sha256 is {found}, expected was {sha256}')
        part.chmod(0o644)  # temporary files are for their owner alone
        part.replace(path)
    except (HopelessDownloadError, OSError) as error:
        raise UsageError(
            f'cannot download the weights {url} ({error}): put the file at {path}, name a local one with '
            f'model.backbone.init_cfg.checkpoint=FILE, or train from random weights with --no-pretrained'
        ) from error
    finally:
        if part != path:
            part.unlink(missing_ok=True)


def download(url: str, file: IO[bytes], limit: int | None = None) -> None:
    """Write what a URL gives into ``file``, in up to ``ATTEMPTS`` attempts, and no more than ``limit`` bytes of it.

    Raises:
        HopelessDownloadError: If the last one failed too, or another could not go better.
    """
    validator: str | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        try:
            request = Request(url, headers={'User-Agent': 'shvit_det'})
            if file.tell() and validator:
                request.add_header('Range', f'bytes={file.tell()}-')
                request.add_header('If-Range', validator)
            with urlopen(request, timeout=TIMEOUT_S) as response:
                validator = response.headers.get('ETag') or response.headers.get('Last-Modified')
                receive(response, file, limit)
                return
        except InterruptedDownloadError as error:
            reason = str(error)
        except HTTPError as error:
            if error.code not in (408, 416, 429) and error.code < 500:
                raise HopelessDownloadError(f'HTTP status {error.code} {error.reason}') from error
            if error.code == 416:
                file.seek(0)
            reason = f'HTTP status {error.code} {error.reason}'
        except URLError as error:
            reason = str(error.reason)
        except (TimeoutError, HTTPException, ConnectionError) as error:
            reason = f'{error or type(error).__name__}'
    raise HopelessDownloadError(f'{reason}, tried {ATTEMPTS} times')


def receive(response: HTTPResponse, file: IO[bytes], limit: int | None = None) -> None:
    """Write a response into ``file``: after what is there, or from the beginning if the server starts over.

    Raises:
        InterruptedDownloadError: If it ends early or stalls.
        HopelessDownloadError: If it is a web page, or larger than ``limit`` bytes.
    """
    if response.headers.get_content_type() == 'text/html':
        raise HopelessDownloadError('the server answered with a web page')
    start = re.match(r'bytes (\d+)-', response.headers.get('Content-Range', ''))
    if response.status != 206 or start is None or int(start[1]) != file.tell():
        file.seek(0)
        file.truncate()
        if response.status == 206:
            raise InterruptedDownloadError('the server went on at another place')
    length = response.headers.get('Content-Length', '')
    total = file.tell() + int(length) if length.isdigit() else None
    too_large = HopelessDownloadError(f'it has more than the {limit or 0:,} bytes that are allowed')
    if limit is not None and total is not None and total > limit:
        raise too_large
    quiet = not sys.stderr.isatty() or os.environ.get('LOCAL_RANK', '0') != '0'
    with tqdm(total=total, initial=file.tell(), unit='B', unit_scale=True, disable=quiet) as bar:
        try:
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                if limit is not None and file.tell() > limit:
                    raise too_large
                bar.update(len(chunk))
        except TimeoutError as error:
            raise InterruptedDownloadError(f'nothing came for {TIMEOUT_S:g} s after {file.tell()} bytes') from error
    if total is not None and file.tell() != total:
        raise InterruptedDownloadError(f'cut off after {file.tell()} of {total} bytes')
