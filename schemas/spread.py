"""How clients lie apart, in the numbers that an evaluation and a summary have of it.

The worst, the worst tenth's border, mean and standard deviation, as the literature on fairness
reports them (q-FFL, Li et al. 2020, arXiv 1905.10497, section 4).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: What is measured of clients, and the percentile at which its worst tenth begins.
MEASURES = {"accuracy": 10, "loss": 90}


def spread(name: str, values: NDArray[np.float64], prefix: str = "") -> dict[str, float]:
    """The summaries of a measure of ``MEASURES``, a value for each client, one at least."""
    percentile = MEASURES[name]
    worst = values.min() if percentile < 50 else values.max()
    return {
        f"{prefix}{name}_worst": float(worst),
        f"{prefix}{name}_p{percentile}": float(np.percentile(values, percentile)),
        f"{prefix}{name}_mean": float(values.mean()),
        f"{prefix}{name}_std": float(values.std()),
    }
