"""What every test starts with."""

import ctypes
import sys

import pytest


class _Stack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.fixture(autouse=True)
def ordinary_stack_for_signals():
    """Signal handlers run on the ordinary stack.

    OpenVINO may leave a process an alternate one of 11 KiB, which Python's handlers overflow: the next worker of a DataLoader
    that ends, or the next SIGTERM, was the end of the process.
    """
    if sys.platform == "linux":
        disabled = _Stack(flags=2)
        ctypes.CDLL(None).sigaltstack(ctypes.byref(disabled), None)
