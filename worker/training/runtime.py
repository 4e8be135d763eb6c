"""TensorFlow's process-wide settings: quiet, and one core for each training."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: ``mallopt``'s names for: the least block that is mapped on its own, the free memory that is kept.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 64 * 1024**2

_LOCK = threading.Lock()
_configured = False


def configure(slots: int) -> None:
    """Set TensorFlow up for ``slots`` trainer threads, before anything else touches it.

    Intra-op threads stay 1: every training has one core, and a model's bytes do not depend on the
    machine's number of them (with 2 a CNN's change). The first call counts, later ones do nothing.
    Raises: RuntimeError if TensorFlow was in use before with other settings.
    """
    global _configured
    with _LOCK:
        if _configured:
            return
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        _keep_freed_memory()
        with _quiet_stderr():
            import tensorflow as tf

            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(max(slots, os.cpu_count() or 1))
            for gpu in tf.config.list_physical_devices("GPU"):
                # Otherwise the first process on a GPU takes all of its memory.
                tf.config.experimental.set_memory_growth(gpu, True)
            tf.zeros([])
        _configured = True


def _keep_freed_memory() -> None:
    """Have glibc reuse a model's memory for the next one, where by default it asks the system anew.

    Every update is a few arrays of the model's size; fresh pages for each cost a small client's
    training a tenth of its time. What the process holds at its peak stays the same.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """TensorFlow's C++ parts greet on stderr at import and at the first kernel, whatever is set."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
