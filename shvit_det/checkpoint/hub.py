"""Checkpoints in repositories of the Hugging Face hub: ``hf-hub:timm/shvit_s4.in1k``, by the package huggingface_hub.

The package keeps them in its own cache, where a file is found again without a network.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path

from ..common.errors import UsageError, first_line

PREFIX = 'hf-hub:'
PACKAGE = 'huggingface_hub'
FILES = ('model.safetensors', 'pytorch_model.bin')  # the first one that a repository has is taken
NEEDS_TOKEN = 'set HF_TOKEN to a token of an account that may read it'


def is_installed() -> bool:
    return find_spec(PACKAGE) is not None


def hub_file(source: str) -> Path:
    """Return the local file of ``hf-hub:ORGANISATION/NAME`` or ``hf-hub:ORGANISATION/NAME@REVISION``.

    It is downloaded if huggingface_hub's cache does not have it.

    Raises:
        UsageError: If the name has another form, the package is missing, or the file cannot be downloaded.
    """
    match = re.fullmatch(rf'{PREFIX}([\w.-]+/[\w.-]+)(?:@(.+))?', source)
    if match is None:
        raise UsageError(
            f'{source} names no repository: write {PREFIX}ORGANISATION/NAME or {PREFIX}ORGANISATION/NAME@REVISION'
        )
    if not is_installed():
        raise UsageError(f'{source} needs {PACKAGE}, which is not installed: pip install {PACKAGE}')
    return cached_file(source) or downloaded_file(source, *match.groups())


def cached_file(source: str) -> Path | None:
    """Return the file of a repository in huggingface_hub's cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = source.removeprefix(PREFIX).partition('@')
    found = (try_to_load_from_cache(repository, name, revision=revision or None) for name in FILES)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def downloaded_file(source: str, repository: str, revision: str | None) -> Path:
    """Download the file of a repository into huggingface_hub's cache, or raise ``UsageError`` with the reason."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in FILES:
        try:
            # This fails at once where a download would try for 20 s.
            get_hf_file_metadata(hf_hub_url(repository, name, revision=revision))
            return Path(hf_hub_download(repository, name, revision=revision))
        except Exception as error:  # by release, those of requests, httpx or httpx2, which have no common base
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue
            raise UsageError(
                f'cannot download {name} of {source} ({reason_of(error)}): name another repository, a URL or a local '
                f'file, or try again'
            ) from error
    raise UsageError(f'{source} has neither {" nor ".join(FILES)}: name another repository, or a local file')


def reason_of(error: Exception) -> str:
    """Return why a download from the hub failed, with what to do where there is something."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set, and the cache does not have it'
    if isinstance(error, errors.GatedRepoError):
        return f'access has to be granted on its page: ask for it there, and {NEEDS_TOKEN}'
    if isinstance(error, errors.RepositoryNotFoundError):
        return f'there is no such repository; if it is private, {NEEDS_TOKEN}'
    if isinstance(error, errors.RevisionNotFoundError):
        return 'it has no such revision'
    if isinstance(error, errors.HfHubHTTPError):
        return f'HTTP status {error.response.status_code}'
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f'{os.strerror(error.errno)}: {constants.HF_HUB_CACHE}; set HF_HOME to a folder of yours'
    of_system = re.search(r'\[Errno -?\d+\] [\w ]+', str(error))  # which some releases wrap several times
    return of_system[0] if of_system else first_line(error)
