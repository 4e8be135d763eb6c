"""The executor of TensorFlow that runs a loop and its steps. A training has one core.

The default executor hands kernels from thread to thread, which costs small models a third of
their time; the single-threaded one runs them one by one in the calling thread. But only the
default one's functions get oneDNN's convolutions, which take half the time of TensorFlow's own.
So: a model without convolutions runs single-threaded as a whole; with them, each step is a
single-threaded function of its own, called from a loop on the default executor.

The single-threaded executor knows no device but the host's, and hangs or crashes on some graphs
that call functions (``tf.function`` within a layer, ``tf.while_loop``): it gets none of those.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf

_DEFAULT, _SINGLE = "", "SINGLE_THREADED_EXECUTOR"


class Execution:
    """How a loop over ``step`` (an index batch, int32 of any length, to a loss) runs."""

    def __init__(self, step: Callable[[Any], Any]) -> None:
        function = tf.function(step, autograph=False, experimental_attributes={"_noinline": True})
        traced = function.get_concrete_function(tf.TensorSpec([None], tf.int32))
        operations = traced.graph.get_operations()
        convolves = any("Conv" in operation.type for operation in operations)
        single = not any(map(_calls, operations)) and not tf.config.list_physical_devices("GPU")
        self._loop = _SINGLE if single and not convolves else _DEFAULT
        self._body = _SINGLE if single else _DEFAULT
        self._step = traced if single and convolves else step

    def loop(self) -> AbstractContextManager[None]:
        """Holds while the loop is traced, and while it is called."""
        return _on(self._loop)

    def step(self, batch: Any) -> Any:
        """What the loop's body calls."""
        with _on(self._body):
            return self._step(batch)


def _calls(operation: Any) -> bool:
    """Whether the operation calls functions: a loop, a branch, a call."""
    return any(attribute.type in ("func", "list(func)") for attribute in operation.op_def.attr)


def _on(executor: str) -> AbstractContextManager[None]:
    context: AbstractContextManager[None] = tf.experimental.function_executor_type(executor)
    return context
