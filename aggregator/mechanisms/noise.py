"""Gaussian noise from a cryptographic generator.

SHAKE-256 (FIPS 202) of a secret and of what the noise is for gives uniform bits, Box and Muller
(1958) make normal numbers of them. Who does not have the secret can tell none of it from others,
whatever part of it is known: that is what a generator for simulations does not promise.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: (number of the step, tensor, block, how many) -> standard normal numbers.
NoiseSource = Callable[[int, str, int, int], Floats]

#: Bytes of a secret.
KEY_BYTES = 32


def from_system() -> NoiseSource:
    """Noise that is kept nowhere: a secret of the operating system for each block, forgotten."""
    return lambda step, tensor, block, count: normals(os.urandom(KEY_BYTES), "", count)


def from_seed(key: bytes) -> NoiseSource:
    """Noise that whoever has the key can make again, and take off."""
    return lambda step, tensor, block, count: normals(key, f"{step}:{tensor}:{block}", count)


def normals(key: bytes, what: str, count: int) -> Floats:
    """``count`` independent standard normal numbers: a function of key and purpose."""
    half = (count + 1) // 2
    bits = np.frombuffer(hashlib.shake_256(key + what.encode()).digest(16 * half), "<u8")
    # The 53 upper bits, and half a unit: never 0, whose logarithm there is not.
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:half])), 2.0 * np.pi * uniform[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def uniforms(key: bytes, what: str, count: int) -> Floats:
    """``count`` independent numbers, uniform on (0, 1): a function of key and purpose."""
    bits = np.frombuffer(hashlib.shake_256(key + what.encode()).digest(8 * count), "<u8")
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
