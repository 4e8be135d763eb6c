"""Arithmetic of this machine: whatever the bytes of a version depend on, besides its updates."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np


def arithmetic() -> str:
    """System, processor family, NumPy and the vector instructions that it found here."""
    config: dict[str, Any] = np.show_config(mode="dicts")  # type: ignore[assignment]
    found = config.get("SIMD Extensions", {}).get("found", [])
    vectors = f" ({', '.join(found)})" if found else ""
    return f"{platform.system()} {platform.machine()}, NumPy {np.__version__}{vectors}"
