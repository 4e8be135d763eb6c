"""Golden vectors of masks and seals, by RFC 8439 and RFC 9180 as they are written down.

``python tests/schemas/golden_masks/make.py`` prints them as JSON. ChaCha20, HKDF and HPKE's key
schedule are spelt out here, with nothing of ``fluffle``; only X25519 and the AEAD are a library's.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

SEED = bytes(range(32))
HELPER, EPHEMERAL = bytes([7] * 32), bytes([9] * 32)
INFO = b"\n".join(
    [b"fluffle secure aggregation 1", b"run-1", b"5", b"3", b"16", b"run-1:4:2", b"2"]
)
#: Rounded to multiples of 1/8.
VALUES, SCALE, WEIGHT = [0.0, 0.125, -0.125, 1.0, -0.9], 8, 3


def quarter(s: list[int], a: int, b: int, c: int, d: int) -> None:
    for x, y, z, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[x] = (s[x] + s[y]) % 2**32
        s[z] ^= s[x]
        s[z] = (s[z] << bits | s[z] >> 32 - bits) % 2**32


def chacha20(key: bytes, blocks: int) -> bytes:
    """RFC 8439, section 2.3, with counter and nonce from zero."""
    out = b""
    for counter in range(blocks):
        start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]
        start += [*struct.unpack("<8L", key), counter, 0, 0, 0]
        s = list(start)
        for _ in range(10):
            for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
                quarter(s, a, b, c, d)
            for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
                quarter(s, a, b, c, d)
        out += struct.pack("<16L", *((x + y) % 2**32 for x, y in zip(s, start, strict=True)))
    return out


def extract(salt: bytes, suite: bytes, label: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + secret, "sha256")


def expand(key: bytes, suite: bytes, label: bytes, info: bytes, length: int) -> bytes:
    text, out, block = struct.pack(">H", length) + b"HPKE-v1" + suite + label + info, b"", b""
    for i in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + text + bytes([i]), hashlib.sha256)
        out += block
    return out[:length]


def hpke(plain: bytes, info: bytes) -> bytes:
    """RFC 9180, base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305."""
    theirs = X25519PrivateKey.from_private_bytes(HELPER).public_key()
    mine = X25519PrivateKey.from_private_bytes(EPHEMERAL)
    enc = mine.public_key().public_bytes_raw()
    kem = b"KEM" + struct.pack(">H", 0x0020)
    eae = extract(b"", kem, b"eae_prk", mine.exchange(theirs))
    shared = expand(eae, kem, b"shared_secret", enc + theirs.public_bytes_raw(), 32)
    suite = b"HPKE" + struct.pack(">3H", 0x0020, 0x0001, 0x0003)
    context = b"\0" + extract(b"", suite, b"psk_id_hash", b"")
    context += extract(b"", suite, b"info_hash", info)
    secret = extract(shared, suite, b"secret", b"")
    key = expand(secret, suite, b"key", context, 32)
    nonce = expand(secret, suite, b"base_nonce", context, 12)
    return enc + ChaCha20Poly1305(key).encrypt(nonce, plain, b"")


def vectors() -> dict[str, object]:
    """All of them, in hexadecimal digits and whole numbers."""
    stream = chacha20(SEED, 3)
    mask = struct.unpack("<40L", stream[:160])
    fixed = [round(SCALE * x) % 2**32 for x in VALUES]
    public = X25519PrivateKey.from_private_bytes(HELPER).public_key().public_bytes_raw()
    return {
        "seed": SEED.hex(),
        "private": HELPER.hex(),
        "public": public.hex(),
        "info": INFO.decode(),
        "seal": hpke(SEED, INFO).hex(),
        "mask": list(mask),
        "values": VALUES,
        "scale": SCALE,
        "fixed": fixed,
        "masked": [(x + r) % 2**32 for x, r in zip(fixed, mask, strict=False)],
        "weight": WEIGHT,
        "weighted": [WEIGHT * x % 2**32 for x in fixed],
    }


if __name__ == "__main__":
    print(json.dumps(vectors(), indent=1))
