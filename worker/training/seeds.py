"""Random streams of one training, a function of what each is for and of which training it is.

    stream = hash(purpose, run's seed, client, turn, base version)

Never of what was drawn before, nor of where: the same wherever a turn is done, and independent of
all others. The base version is part of it: a resident client's turn is 1 in every version, and a
turn that comes again may be trained from another.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: order: of the examples, and the seeds of layers such as dropout. again: those of a second
#: training in the same turn. gradient: layers' seeds in a gradient over all examples. task: what an
#: ``ArrayTask`` draws. rounding, noise: of the steps on an update's way out.
Purpose = Literal["order", "again", "gradient", "task", "rounding", "noise"]


@dataclass(frozen=True, slots=True)
class Streams:
    """The streams of one training."""

    #: The run's.
    seed: int
    client: str
    turn: int
    #: Of the model that it trains.
    base_version: int

    def seeds(self, purpose: Purpose, count: int) -> NDArray[np.int64]:
        """``count`` independent pairs of 32-bit numbers, shape (count, 2)."""
        return seeds_of(self._key(purpose), count)

    def generator(self, purpose: Purpose) -> np.random.Generator:
        """A generator of its own."""
        digest = hashlib.sha256(self._key(purpose).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16]))

    def _key(self, purpose: Purpose) -> str:
        return f"{purpose}:{self.seed}:{self.client}:{self.turn}:{self.base_version}"


def seeds_of(text: str, count: int) -> NDArray[np.int64]:
    """``count`` independent pairs of 32-bit numbers, shape (count, 2)."""
    digest = hashlib.shake_128(text.encode()).digest(8 * count)
    return np.frombuffer(digest, "<i4").astype(np.int64).reshape(count, 2)
