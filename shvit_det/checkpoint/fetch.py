"""The local file of a checkpoint's path or URL; a download is kept in torch's hub cache and found there offline."""

import hashlib
import os
import re
import string
import sys
import time
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote
from urllib.request import Request, urlopen

import torch
from mmengine.logging import print_log
from torch.hub import tqdm  # the real one where it is installed

from ..common.atomic_files import partial_file, publish
from ..common.errors import UsageError
from .hub import PREFIX, cached_file, hub_file, is_installed
from .reading import head_of, open_file, wrong_kind

ATTEMPTS = 3
TIMEOUT_S = 30.0  # without a byte
PAUSE_S = 1.0  # before the second attempt, doubled before each further one
CHUNK = 1 << 17
PRINTABLE = string.ascii_letters + string.digits + string.punctuation  # all else has to be escaped in a URL
LOCAL_FILE = 'name a local one with model.backbone.init_cfg.checkpoint=FILE'
OTHER_CACHE = 'TORCH_HOME=/a/folder/of/yours'
DIGITS = 16  # of the digest in a file name
LONGEST_STEM = 100  # characters of a file name before the digest; file systems allow 255 bytes
# The weights that the configs and the metafile name. Programs that use torch's hub cache them under these plain names.
# Each name means one file, so that such a file is used and not downloaded again.
AUTHORS_RELEASE = 'https://github.com/ysj9909/SHViT/releases/download/v1.0/'
AUTHORS_FILES = (
    *(f'shvit_s{number}.pth' for number in (1, 2, 3, 4)),
    'retinanet_shvit_s4_1x_coco.pth',
    'maskrcnn_shvit_s4_1x_coco.pth',
)
# The same ImageNet weights under timm's names, for a network that reaches the hub alone.
HUB_COPIES = {f'{AUTHORS_RELEASE}shvit_s{number}.pth': f'hf-hub:timm/shvit_s{number}.in1k' for number in (1, 2, 3, 4)}


class InterruptedDownloadError(Exception):
    """A download failed, and another attempt may succeed; the message says what happened."""


class PermanentDownloadError(Exception):
    """A download failed, and another attempt would fail too; the message says why."""


def find_checkpoint(source: str | Path, sha256: str | None = None) -> Path:
    """Return the local file of a checkpoint; what is elsewhere is downloaded once.

    A URL goes into torch's hub cache, and a repository's file into that of huggingface_hub.

    Args:
        source: A file, an http(s) URL, or a repository of the Hugging Face hub as ``hf-hub:ORGANISATION/NAME``.
        sha256: The hash that the file must have, in full or its first digits (at least 8).

    Raises:
        UsageError: If there is no such file, the download fails, or the hash is another.
    """
    if sha256 is not None and not re.fullmatch(r'[0-9a-fA-F]{8,64}', sha256):
        raise UsageError(f'sha256 is 8 to 64 hexadecimal digits, but got {sha256!r}')
    changed = ''
    if re.match(r'https?://', str(source), re.IGNORECASE):
        path = downloaded(str(source), sha256)
        changed = f': if the file of that URL is another one now, remove {path} to download it again'
    elif str(source).startswith(PREFIX):
        path = hub_file(str(source))
    else:
        path = Path(os.path.expanduser(source))  # noqa: PTH111  # pathlib's raises where there is no such home folder
        if os.path.isdir(path):  # noqa: PTH112  # as above
            newest = max(path.glob('*.pth'), key=os.path.getmtime, default=None)  # type: ignore[type-var]
            example = '' if newest is None else f', {newest} for instance'
            raise UsageError(f'{source} is a folder: name a checkpoint in it{example}')
        if not is_file(path):
            kind = ' (URLs have to start with http:// or https://)' if re.match(r'\w\w+:/', str(source)) else ''
            raise UsageError(f'no such checkpoint: {source}{kind}')
    if wrong := wrong_hash(path, sha256):
        raise UsageError(f'{path} is not the file that was meant: {wrong}{changed}')
    return path


def is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  # pathlib's raises where a folder cannot be looked into


def downloaded(url: str, sha256: str | None) -> Path:
    """Return the file of a URL in torch's hub cache; it is downloaded if it is not there.

    Where it cannot be downloaded, a repository of the Hugging Face hub may have the same weights.
    """
    path = cached_path(url)
    if is_file(path):
        return path
    name = url.removeprefix(AUTHORS_RELEASE)
    if name in AUTHORS_FILES and is_file(plain := path.with_name(name)) and not wrong_hash(plain, sha256):
        return plain
    copy = HUB_COPIES.get(url) if sha256 is None and is_installed() else None  # the hash is that of the authors' file
    if copy and (found := cached_file(copy)):
        print_log(f'{url}: taken from {copy}, which was downloaded before', 'current')
        return found
    try:
        fetch(url, path, sha256)
        return path
    except UsageError as error:
        if copy is None or not isinstance(error.__cause__, PermanentDownloadError):
            raise
        try:
            found = hub_file(copy)
        except UsageError as second:
            raise UsageError(f'{error}; {second}') from error
        print_log(f'{url} cannot be downloaded ({error.__cause__}): taken from {copy}', 'current')
        return found


def cached_path(url: str) -> Path:
    """Return where the file of a URL is kept in torch's hub cache.

    The name is that in the URL, for people, and a digest of the whole URL, which tells files apart. On Hugging Face,
    where all files are called ``model.safetensors``, the repository's name comes first.
    """
    place = re.split('[?#]', url)[0]
    parts = [part for part in re.split(r'[/\\]+', unquote(place)) if part.strip('.')][2:]  # without scheme and host
    name = parts[-1] if parts else 'checkpoint'
    if parts[2:3] == ['resolve']:
        name = f'{parts[1]}-{name}'
    stem, suffix = os.path.splitext(re.sub(r'[^A-Za-z0-9._+-]+', '_', name).strip('.'))  # noqa: PTH122
    digest = hashlib.sha256(url.encode(errors='surrogatepass')).hexdigest()[:DIGITS]
    return cache_folder() / f'{stem[:LONGEST_STEM]}-{digest}{suffix[:DIGITS]}'


def cache_folder() -> Path:
    """Return the folder in which torch's hub keeps checkpoints; without a home folder it may be unknown."""
    folder = torch.hub.get_dir()
    if folder.startswith('~'):  # torch would make a folder of that name in the working folder
        raise UsageError(f'there is no home folder to keep downloads in ({folder}): set {OTHER_CACHE}')
    return Path(folder) / 'checkpoints'


def hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open_file(path) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def wrong_hash(path: Path, sha256: str | None) -> str | None:
    """Return how the hash of a file differs from what it must begin with; None if it does not."""
    if sha256 is None or (found := hash_of(path)).startswith(sha256.lower()):
        return None
    return f'its sha256 is {found}, expected was {sha256}'


def fetch(url: str, path: Path, sha256: str | None = None) -> None:
    """Download a complete file to ``path``, or raise ``UsageError`` that says what was tried and what else can be done.

    An interrupted download continues where it stopped.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(path, unique=True) as part:
            with part.open('wb') as file:
                download(url, file)
            if wrong := wrong_kind(head_of(part)) or wrong_hash(part, sha256):
                raise PermanentDownloadError(wrong)
            publish(part, path)
    except PermanentDownloadError as error:
        raise UsageError(
            f'cannot download the weights {url} ({error}): put the file at {path}, {LOCAL_FILE}, or train from random '
            f'weights with --no-pretrained'
        ) from error
    except OSError as error:
        raise UsageError(
            f'cannot keep the weights {url} in {path.parent} ({error.strerror}): set {OTHER_CACHE}, or {LOCAL_FILE}'
        ) from error


def download(url: str, file: IO[bytes], limit: int | None = None) -> None:
    """Download a URL into ``file``, in up to ``ATTEMPTS`` attempts, and no more than ``limit`` bytes.

    Raises:
        PermanentDownloadError: If the last attempt failed too, or no other could succeed.
    """
    validator: str | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        try:
            request = Request(quote(url, safe=PRINTABLE, errors='surrogatepass'), headers={'User-Agent': 'shvit_det'})
            if file.tell() and validator:
                request.add_header('Range', f'bytes={file.tell()}-')
                request.add_header('If-Range', validator)
            response = urlopen(request, timeout=TIMEOUT_S)
        except HTTPError as error:
            if error.code not in (408, 416, 429) and error.code < 500:
                raise PermanentDownloadError(f'HTTP status {error.code} {error.reason}') from error
            if error.code == 416:
                file.seek(0)
            reason = f'HTTP status {error.code} {error.reason}'
            continue
        except ValueError as error:
            raise PermanentDownloadError(f'no URL: {error}') from error
        except (OSError, HTTPException) as error:
            reason = network_reason(error)
            continue
        with response:
            validator = response.headers.get('ETag') or response.headers.get('Last-Modified')
            try:
                receive(response, file, limit)
                return
            except InterruptedDownloadError as error:
                reason = str(error)
    raise PermanentDownloadError(f'{reason}, tried {ATTEMPTS} times')


def network_reason(error: Exception) -> str:
    """Return the text of an error of the network; the name of its class where it has none."""
    return str(error.reason if isinstance(error, URLError) else error) or type(error).__name__


def receive(response: HTTPResponse, file: IO[bytes], limit: int | None = None) -> None:
    """Write a response into ``file``: after what is there, or from the beginning if the server starts over.

    Raises:
        InterruptedDownloadError: If it ends early or stalls.
        PermanentDownloadError: If it is a web page, or larger than ``limit`` bytes.
    """
    if response.headers.get_content_type() == 'text/html':
        raise PermanentDownloadError('the server answered with a web page')
    start = re.match(r'bytes (\d+)-', response.headers.get('Content-Range', ''))
    if response.status != 206 or start is None or int(start[1]) != file.tell():
        file.seek(0)
        file.truncate()
        if response.status == 206:
            raise InterruptedDownloadError('the server went on at another place')
    length = response.headers.get('Content-Length', '')
    total = file.tell() + int(length) if length.isdigit() else None
    too_large = PermanentDownloadError(f'it has more than the {limit or 0:,} bytes that are allowed')
    if limit is not None and total is not None and total > limit:
        raise too_large
    quiet = not sys.stderr.isatty() or os.environ.get('LOCAL_RANK', '0') != '0'
    with tqdm(total=total, initial=file.tell(), unit='B', unit_scale=True, disable=quiet) as bar:
        while chunk := next_chunk(response, file.tell()):
            file.write(chunk)
            if limit is not None and file.tell() > limit:
                raise too_large
            bar.update(len(chunk))
    if total is not None and file.tell() != total:
        raise InterruptedDownloadError(f'cut off after {file.tell()} of {total} bytes')


def next_chunk(response: HTTPResponse, position: int) -> bytes:
    """Return the next bytes of a response, none at its end."""
    try:
        return response.read1(CHUNK)
    except TimeoutError as error:
        raise InterruptedDownloadError(f'nothing came for {TIMEOUT_S:g} s after {position} bytes') from error
    except (OSError, HTTPException) as error:
        raise InterruptedDownloadError(f'{network_reason(error)} after {position} bytes') from error
