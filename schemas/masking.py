"""Masks: updates as fixed-point numbers under a one-time pad, and its seed sealed to the helper.

With a client's values x_i, a scale s and a seed that it draws for this update alone::

    y_i = (round(s x_i) + r_i) mod 2^32,   r = ChaCha20(seed), as 32-bit little-endian words

and to the helper alone: HPKE(seed; info), RFC 9180 base mode with X25519, HKDF-SHA256 and
ChaCha20-Poly1305. ``info`` has the run, the update, its client, how many words there are, and what
the client was told of the helper (the fewest clients, the largest weight): a seal opens for this
update under these promises and no others. With whole weights w::

    sum_k w_k y_k - sum_k w_k r_k = sum_k w_k round(s x_k)   mod 2^32

which is exact as long as the right side is within ±2^31 (``fluffle.schemas.secure.scale_of``).
The cryptography is ``cryptography``'s; nothing here is of our own but the order of bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas.errors import DecodeError, UserError
from fluffle.schemas.tensors import Spec, Tensors, is_float

Words = NDArray[np.uint32]

SEED_BYTES = 32
#: An ephemeral public key, the seed, and the tag.
SEAL_BYTES = 32 + SEED_BYTES + 16
#: Tensors of a masked update.
WORDS, SEAL = "masked/words", "masked/seal"
#: Words of keystream that are in memory at once.
_BLOCK = 2**18


class Member(NamedTuple):
    """An update of a set that is to be unmasked."""

    update_id: str
    client: str
    weight: int
    seal: bytes


class Sealed(NamedTuple):
    """What a client was told when it sealed a seed."""

    run_id: str
    words: int
    min_clients: int
    max_weight: int


def require_cryptography() -> None:
    """Raises: UserError where the library is missing, or too old."""
    _crypto("primitives.hpke")


def public_key(private: bytes) -> str:
    """The public key of a private one (32 bytes), as 64 hexadecimal digits."""
    return bytes(_private(private).public_key().public_bytes_raw()).hex()


def masked_names(tensors: Mapping[str, Any]) -> list[str]:
    """The tensors that are masked, in the order of their words."""
    return sorted(name for name, array in tensors.items() if is_float(array))


def masked_spec(model: Mapping[str, Any]) -> Spec:
    """What a masked update of this model looks like."""
    words = sum(model[name].size for name in masked_names(model))
    return {WORDS: ("uint32", (words,)), SEAL: ("uint8", (SEAL_BYTES,))}


def mask(tensors: Tensors, key: str, sealed: Sealed, update_id: str, client: str, scale: float,
         most: float) -> Tensors:  # fmt: skip
    """The tensors as they leave: words under a mask of their own, and its sealed seed.

    key: the helper's public one. most: the largest value that has room.
    Raises: UserError for a larger one, or one that is no number.
    """
    words = fixed(tensors, scale, most)
    seed = os.urandom(SEED_BYTES)
    add_mask(words, seed, 1)
    return {
        WORDS: words,
        SEAL: np.frombuffer(seal(seed, key, info(sealed, update_id, client)), np.uint8),
    }


def fixed(tensors: Tensors, scale: float, most: float) -> Words:
    """round(scale x) mod 2^32 of every value, flat. Raises: UserError as ``mask``."""
    parts = [np.zeros(0, np.uint32)]
    for name in masked_names(tensors):
        values = np.asarray(tensors[name], np.float64).reshape(-1)
        largest = float(np.abs(values).max(initial=0.0))
        if not largest <= most:  # NaN, too
            raise UserError(
                f"{name} has a value of {largest:.3g}, and secure_aggregation.max_value = {most:g} "
                "is the largest that has room: make it larger, or clip updates"
            )
        parts.append(np.rint(values * scale).astype(np.int64).astype(np.uint32))
    return np.concatenate(parts)


def real(words: Words, like: Mapping[str, Any], scale: float) -> dict[str, NDArray[np.float64]]:
    """The values of summed words, by tensor; the inverse of ``fixed``, up to rounding."""
    values, found, at = words.view(np.int32) / scale, {}, 0
    for name in masked_names(like):
        size = like[name].size
        found[name] = values[at : at + size].reshape(like[name].shape)
        at += size
    return found


def add_words(total: Words, words: Words, weight: int) -> None:
    """total += weight words mod 2^32, in place."""
    total += words if weight == 1 else words * np.uint32(weight)


def add_mask(total: Words, seed: bytes, weight: int) -> None:
    """total += weight ChaCha20(seed) mod 2^32, in place."""
    ciphers = _crypto("primitives.ciphers")
    chacha = ciphers.algorithms.ChaCha20(seed, bytes(16))
    stream = ciphers.Cipher(chacha, mode=None).encryptor()
    for start in range(0, total.size, _BLOCK):
        part = total[start : start + _BLOCK]
        add_words(part, np.frombuffer(stream.update(bytes(part.nbytes)), "<u4"), weight)


def mask_sum(members: Iterable[Member], sealed: Sealed, private: bytes) -> Words:
    """sum_k w_k r_k mod 2^32. Raises: DecodeError for a seal that was not made for this."""
    total = np.zeros(sealed.words, np.uint32)
    for member in members:
        try:
            seed = unseal(member.seal, private, info(sealed, member.update_id, member.client))
        except DecodeError as error:
            raise DecodeError(f"update {member.update_id}: {error}") from None
        add_mask(total, seed, member.weight)
    return total


def info(sealed: Sealed, update_id: str, client: str) -> bytes:
    """What a seal is bound to. No part has a line break in it."""
    parts = ("fluffle secure aggregation 1", *map(str, sealed), update_id, client)
    return "\n".join(parts).encode()


def seal(seed: bytes, key: str, info: bytes) -> bytes:
    """The seed for the owner of this public key alone; ``SEAL_BYTES`` long."""
    x25519 = _crypto("primitives.asymmetric.x25519")
    public = x25519.X25519PublicKey.from_public_bytes(bytes.fromhex(key))
    return bytes(_suite().encrypt(seed, public, info))


def unseal(sealed: bytes, private: bytes, info: bytes) -> bytes:
    """The seed. Raises: DecodeError where it was sealed for another key, or to another end."""
    try:
        seed = bytes(_suite().decrypt(sealed, _private(private), info))
    except Exception as error:  # InvalidTag, and whatever hostile bytes make of a public key
        raise DecodeError(f"a seal does not open ({type(error).__name__})") from None
    if len(seed) != SEED_BYTES:
        raise DecodeError(f"a seed of {len(seed)} bytes")
    return seed


def set_digest(run_id: str, words: int, members: Sequence[Member]) -> str:
    """SHA-256 of a set with its weights and seals, in whatever order it comes."""
    digest = hashlib.sha256(f"{run_id}\n{words}\n".encode())
    for update_id, client, weight, sealed in sorted(members):
        digest.update(f"{update_id}\n{client}\n{weight}\n{sealed.hex()}\n".encode())
    return digest.hexdigest()


def _suite() -> Any:
    hpke = _crypto("primitives.hpke")
    return hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)


def _private(private: bytes) -> Any:
    return _crypto("primitives.asymmetric.x25519").X25519PrivateKey.from_private_bytes(private)


def _crypto(module: str) -> Any:
    """A part of the library, which only secure aggregation needs. Raises: UserError."""
    try:
        return import_module(f"cryptography.hazmat.{module}")
    except ImportError as error:
        raise UserError(
            "secure_aggregation needs the library cryptography, with HPKE: pip install "
            f"'fluffle[secure]' ({error})"
        ) from error
