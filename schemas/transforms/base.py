"""A transform: a pair of pure functions on named tensors, and a function of their spec.

A transform works on the *values*: the ``trainable`` tensors, or what a transform before it made of
them (``sparse/values``). Everything else passes unchanged. Shapes after it are a function of those
before it, so that the server knows what must arrive before it looks at a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas.tensors import Spec, Tensors

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Draws:
    """Randomness: ``rounding`` is a function of the turn, ``noise`` may be nobody's to know."""

    rounding: np.random.Generator
    noise: np.random.Generator


class Transform(Protocol):
    """One step on the way out, and back.

    >>> class Halved:
    ...     def spec(self, before): return before
    ...     def apply(self, tensors, draws): return {k: a / 2 for k, a in tensors.items()}
    ...     def restore(self, tensors, before): return {k: a * 2 for k, a in tensors.items()}
    >>> sent = Halved().apply({"trainable/0": np.array([4.0])}, None)
    >>> sent, Halved().restore(sent, {})
    ({'trainable/0': array([2.])}, {'trainable/0': array([4.])})
    """

    def spec(self, before: Spec) -> Spec:
        """What ``apply`` makes of tensors of this spec."""
        ...

    def apply(self, tensors: Tensors, draws: Draws) -> Tensors:
        """At the client."""
        ...

    def restore(self, tensors: Tensors, before: Spec) -> Tensors:
        """At the server: tensors of the spec ``before``. Raises: ValueError where it cannot be."""
        ...


def is_trainable(name: str) -> bool:
    """Whether a transform works on this tensor."""
    return name.startswith("trainable/") or name == "sparse/values"
