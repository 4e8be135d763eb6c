"""Banded matrix factorisation.

Choquette-Choo, Ganesh, McKenna, McMahan, Rush, Thakurta, Xu: (Amplified) Banded Matrix
Factorization: A unified approach to private training, arXiv 2306.08153, with C Toeplitz (McKenna:
Scaling up the Banded Matrix Factorization Mechanism, arXiv 2405.15913). Of all C with b bands it is
the one whose noise harms the prefix sums least, that is the models::

    min over c of  |A C^-1|_F^2 |c|^2,   A_ij = 1 where j <= i

The search begins at the first b coefficients of (1 - x)^-1/2, which are near it (Kalinin, Lampert:
Banded Square Root Matrix Factorization, arXiv 2405.13763). A client whose turns lie b versions
apart never meets itself in C, so its updates cost what they cost under independent noise, and the
noise of a version takes back most of that of the versions before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: The search looks no farther ahead: by then c no longer changes, and it takes a second.
HORIZON = 2048
#: Of the search, at most; it has rarely moved by a thousandth after a hundred.
_STEPS = 300


class BandedMf:
    """Noise that later versions take back, in as many bands as the least separation."""

    def column(self, versions: int, separation: int) -> Sequence[float]:
        """The best column for so many versions."""
        from scipy.optimize import minimize  # of dp-accounting, which [privacy] needs anyway

        bands, n = min(separation, versions), min(versions, HORIZON)
        start = square_root(bands)
        if bands == 1:
            return [1.0]
        found = minimize(
            lambda rest: _loss(np.concatenate([[1.0], rest]), n),
            start[1:],
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, None)] * (bands - 1),
            options={"maxiter": _STEPS, "ftol": 1e-12},
        )
        best = np.concatenate([[1.0], found.x])
        better = _loss(best, n)[0] < _loss(start, n)[0]
        return [float(c) for c in (best if better else start)]


def square_root(bands: int) -> Floats:
    """The first coefficients of (1 - x)^-1/2: 1, 1/2, 3/8, …"""
    k = np.arange(1, bands)
    return np.cumprod(np.concatenate([[1.0], (2 * k - 1) / (2 * k)]))


def inverse(column: Sequence[float] | Floats, n: int) -> Floats:
    """The first column of C^-1, n long."""
    from scipy.signal import lfilter  # the recursion of a filter without zeros, in C

    found: Floats = lfilter([1.0], np.asarray(column, np.float64), np.eye(1, n)[0])
    return found


def _loss(c: Floats, n: int) -> tuple[float, Floats]:
    """|A C^-1|_F^2 |c|^2 and its gradient but for c_0, by n log n products of series."""
    taken = inverse(c, n)
    s = np.cumsum(taken)
    weights = np.arange(n, 0, -1.0)
    error, length = float(weights @ s**2), float(c @ c)
    # d s / d c_i = -(s * taken) shifted by i
    slope = np.fft.irfft(np.fft.rfft(s, 2 * n) * np.fft.rfft(taken, 2 * n), 2 * n)[:n]
    moved = [-2.0 * float((weights * s)[i:] @ slope[: n - i]) for i in range(1, len(c))]
    return error * length, length * np.array(moved) + 2.0 * error * c[1:]
