"""TensorFlow's process-wide settings: quiet, and one core for each training."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

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
        with _quiet_stderr():
            import tensorflow as tf

            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(max(slots, os.cpu_count() or 1))
            for gpu in tf.config.list_physical_devices("GPU"):
                # Otherwise the first process on a GPU takes all of its memory.
                tf.config.experimental.set_memory_growth(gpu, True)
            tf.zeros([])
        _configured = True


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
