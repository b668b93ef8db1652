"""The alternate stack of signals, which OpenVINO sets and leaves behind."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class SignalStack(ctypes.Structure):
    """C's ``stack_t`` on Linux."""

    _fields_ = (('address', ctypes.c_void_p), ('flags', ctypes.c_int), ('size', ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Give this thread the alternate stack back that it had before the block, mostly none.

    Python runs its handlers of signals there, also that for the workers of a data loader, and the stack that OpenVINO
    sets while it compiles a model is a small one.
    """
    if not sys.platform.startswith('linux'):
        yield
        return
    set_stack = ctypes.CDLL(None).sigaltstack
    before = SignalStack()
    set_stack(None, ctypes.byref(before))
    try:
        yield
    finally:
        set_stack(ctypes.byref(before), None)
