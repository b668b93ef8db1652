"""Reading any SHViT checkpoint, a file or a URL, safely and in full: find it, read it, rename its keys, match, load."""

from .fetch import find_checkpoint
from .loading import SHViTPretrained, check_checkpoint, load_checkpoint, load_content

__all__ = ['SHViTPretrained', 'check_checkpoint', 'find_checkpoint', 'load_checkpoint', 'load_content']
