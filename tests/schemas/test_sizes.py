"""Sizes in bytes, as a person reads them."""

from __future__ import annotations

import pytest

from fluffle.schemas.sizes import MB, MIB, human_bytes


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (44_700_000, "44.7 MB"),
        (512 * MIB, "537 MB"),
        (1500 * MB, "1.5 GB"),
        (2.0e19, "20 EB"),
    ],
)
def test_sizes_have_three_digits_and_decimal_units(size: float, text: str) -> None:
    assert human_bytes(size) == text
