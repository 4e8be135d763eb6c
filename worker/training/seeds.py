"""Seeds of one training: independent of all others, and the same wherever it is done."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def seeds_of(text: str, count: int) -> NDArray[np.int64]:
    """``count`` independent pairs of 32-bit numbers, shape (count, 2)."""
    digest = hashlib.shake_128(text.encode()).digest(8 * count)
    return np.frombuffer(digest, "<i4").astype(np.int64).reshape(count, 2)
