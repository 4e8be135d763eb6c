"""Base models as TensorFlow's tensors, made once for all trainers of a process.

Clients in flight train from a few versions at a time, each of which many of them share.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import tensorflow as tf

from fluffle.schemas.sizes import MIB
from fluffle.schemas.tensors import Array

#: What is kept takes so many bytes, or is one model.
KEPT_BYTES = 16 * MIB


class TensorCache:
    """The base models that were asked for last. Thread-safe."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._limit = kept_bytes
        self._lock = threading.Lock()
        #: By the identity of the arrays, which an entry keeps alive.
        self._known: OrderedDict[tuple[int, ...], tuple[list[Array], list[Any]]] = OrderedDict()
        #: Bytes of the tensors that are kept.
        self.kept_bytes = 0

    def find(self, arrays: list[Array]) -> list[Any] | None:
        """The tensors of these very arrays; None where they are not here."""
        key = tuple(map(id, arrays))
        with self._lock:
            if key not in self._known:
                return None
            self._known.move_to_end(key)
            return self._known[key][1]

    def make(self, arrays: list[Array]) -> list[Any]:
        """Their tensors; kept where nobody can change the arrays."""
        tensors = [tf.convert_to_tensor(array) for array in arrays]
        if any(array.flags.writeable for array in arrays):
            return tensors
        with self._lock:
            _, kept = self._known.setdefault(tuple(map(id, arrays)), (arrays, tensors))
            if kept is tensors:
                self.kept_bytes += _size(arrays)
            while self.kept_bytes > self._limit and len(self._known) > 1:
                _, (old, _) = self._known.popitem(last=False)
                self.kept_bytes -= _size(old)
        return kept


def _size(arrays: list[Array]) -> int:
    return sum(array.nbytes for array in arrays)
