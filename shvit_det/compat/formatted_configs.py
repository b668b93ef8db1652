"""mmengine formats a config anew whenever it logs it, copies it or saves a checkpoint, for half a second or more."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.config import config as module

format_code = module.FormatCode


@functools.lru_cache(maxsize=8)
def formatted(text: str, options: str) -> Any:
    return format_code(text, **json.loads(options))


@contextmanager
def formatted_once() -> Iterator[None]:
    """Let mmengine format each text of a config once within the context."""
    before = module.FormatCode
    module.FormatCode = lambda text, **options: formatted(text, json.dumps(options, sort_keys=True))
    try:
        yield
    finally:
        module.FormatCode = before
