"""Symptom: mmpretrain is installed, and importing its models fails.

Its last release imports names that newer releases of ``transformers`` no longer have, as soon as pycocotools is
installed too. Only ImageNet classification needs mmpretrain, so it is imported only where it is used.
"""

import importlib
import importlib.util

from ..common.errors import UsageError


def require_mmpretrain() -> None:
    """Import mmpretrain's models, or raise ``UsageError`` with a sentence that says what to do."""
    if importlib.util.find_spec('mmpretrain') is None:
        raise UsageError("ImageNet classification needs mmpretrain: install it with pip install 'mmpretrain>=1.2,<1.3'")
    try:
        importlib.import_module('mmpretrain.models')
    except (ImportError, AttributeError, RuntimeError) as error:
        raise UsageError(
            f'mmpretrain cannot be imported ({error}): most often a new transformers is installed, which '
            f'mmpretrain 1.2 cannot use beside pycocotools; uninstall transformers, or use an environment without it'
        ) from error
