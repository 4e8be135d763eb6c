"""An engine's process-wide settings: quiet, and one core for each training."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from fluffle.schemas import UserError
from fluffle.schemas.extensions import FOLDER
from fluffle.schemas.sizes import MIB

#: ``mallopt``'s names for: the least block that is mapped on its own, the free memory that is kept.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 64 * MIB

#: What a process trains with, where it learns of no experiment before it starts.
ENGINE = "FLUFFLE_ENGINE"

_log = logging.getLogger(__name__)

_LOCK = threading.Lock()
_configured = False


def configure(slots: int, engine: str | None = None) -> None:
    """Have the engine set up for ``slots`` trainer threads, before anything else touches it.

    engine: tensorflow or jax; by default what ``FLUFFLE_ENGINE`` says, else tensorflow.

    It is imported by whoever needs it first, and set up within that import: a process that trains
    with something else does without. Intra-op threads stay 1: every training has one core, and a
    model's bytes do not depend on the machine's number of them (with 2 a CNN's change). The first
    call counts, later ones do nothing.
    Keras likewise is as it comes, with the engine below it, whatever ``KERAS_BACKEND`` and
    ``~/.keras/keras.json`` of a machine say: one plan gives one model everywhere. A task that wants
    another dtype says so itself.
    Where TensorFlow was in use before with other settings, as in a notebook, it stays as it is, and
    that is said: results may then differ in their last digits from another machine's.
    Raises: UserError where Keras is in use with another backend.
    """
    global _configured
    with _LOCK:
        if _configured:
            return
        engine = engine or os.environ.get(ENGINE) or "tensorflow"
        if engine not in ("tensorflow", "jax"):
            raise UserError(f"{ENGINE}={engine}: it is tensorflow or jax")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ["KERAS_BACKEND"] = engine
        if engine == "jax":  # a training has one core there, too
            flags = "--xla_cpu_multi_thread_eigen=false"
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        _keep_freed_memory()
        pin = partial(_pin_keras, engine)
        for name, set_up in (("tensorflow", partial(_set_up, slots)), ("keras", pin)):
            if name in sys.modules:
                set_up()
            else:
                sys.meta_path.insert(0, _OnImport(name, set_up))
        _configured = True


def import_ahead() -> None:
    """Import TensorFlow now: a first turn would wait for it, for seconds, with others behind it.

    Not where a process may have another task than Keras's, and without a word where there is none:
    whoever needs it says so.
    """
    if os.environ.get(FOLDER) is None:
        with contextlib.suppress(ImportError):
            importlib.import_module("keras")


def _set_up(slots: int) -> None:
    import tensorflow as tf

    with _quiet_stderr():
        try:
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(max(slots, os.cpu_count() or 1))
            for gpu in tf.config.list_physical_devices("GPU"):
                # Otherwise the first process on a GPU takes all of its memory.
                tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:  # it has begun to compute, and takes no settings any more
            if tf.config.threading.get_intra_op_parallelism_threads() != 1:
                _log.warning(
                    "TensorFlow was in use before, with more than one thread for an operation: "
                    "trainings may differ in their last digits from those of a fresh process, "
                    "where a run comes before anything else of TensorFlow's"
                )
        tf.zeros([])


def _pin_keras(engine: str) -> None:
    import keras

    if keras.config.backend() != engine:
        raise UserError(
            f"Keras is in use with the backend {keras.config.backend()}, and trainings run on "
            f"{engine}: set KERAS_BACKEND={engine} before keras is imported"
        )
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")


class _NotInstalled(UserError, ModuleNotFoundError):
    """For a person, and for code that can do without."""


class _OnImport(MetaPathFinder):
    """Sets a module up within its import, whoever imports it."""

    def __init__(self, name: str, set_up: Callable[[], None]) -> None:
        self._name = name
        self._set_up = set_up

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None:
            sys.meta_path.insert(0, self)
            raise _NotInstalled(
                f"training needs {name}, which is not installed: pip install 'fluffle[cpu]', with "
                "an NVIDIA GPU 'fluffle[gpu]'"
            )
        if spec.loader is not None:
            loader, execute = spec.loader, spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with _quiet_stderr(), _without_jax():
                    execute(module)
                self._set_up()

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


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
def _without_jax() -> Iterator[None]:
    """TensorFlow imports JAX where it is installed, for a converter that nobody here uses.

    That is a fifth of its own import. Keras likewise looks for what its backend is not.
    """
    hides = "jax" not in sys.modules and os.environ.get("KERAS_BACKEND") != "jax"
    if hides:
        sys.modules["jax"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hides:
            del sys.modules["jax"]


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


def check_engine(engine: str | None) -> None:
    """Raises: UserError where this process was set up for another engine than a plan asks for."""
    wanted, here = engine or "tensorflow", os.environ.get("KERAS_BACKEND", "tensorflow")
    if wanted == here:
        return
    if importlib.util.find_spec(wanted) is None:
        raise UserError(
            f"this run trains with training.engine = {wanted!r}, and it is not installed here: "
            "pip install 'fluffle[jax]'"
        )
    raise UserError(
        f"this run trains with training.engine = {wanted!r}, and this process with {here!r}: start "
        f"it with {ENGINE}={wanted}"
    )
