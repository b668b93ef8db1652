"""Any SHViT checkpoint, a file or a URL, into a model: safely, in full, and said in one line."""

from .fetch import find_checkpoint
from .initializer import SHViTPretrained
from .loading import check_checkpoint, load_checkpoint, load_content

__all__ = [
    'SHViTPretrained',
    'check_checkpoint',
    'find_checkpoint',
    'load_checkpoint',
    'load_content',
]
