"""Robust rules: what they may be asked to withstand, and how many updates that takes."""

from __future__ import annotations

from pydantic import Field

from fluffle.aggregator.strategies.optimizers import OptimizerParameters


class RobustParameters(OptimizerParameters):
    """What rules take that no few bad updates move far.

    A quorum below ``least_updates`` is refused, and no deadline closes a buffer with fewer.
    """

    #: How many updates of a buffer may be bad (f); 0 for none. Default: 1.
    byzantine_updates: int | None = Field(None, ge=0)

    def bad(self, quorum: int) -> int:
        """f"""
        return 1 if self.byzantine_updates is None else self.byzantine_updates

    def needs(self, quorum: int) -> str:
        """What it needs so many for."""
        f = self.bad(quorum)
        return f"to withstand {f} bad one{'s' * (f != 1)} (aggregation.byzantine_updates)"
