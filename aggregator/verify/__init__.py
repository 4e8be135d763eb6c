"""``fluffle verify``: a run's ledger and files against the invariants (DESIGN section 6)."""

from __future__ import annotations

from aggregator.verify.checks import CHECKS, verify
from aggregator.verify.replay import Replayed, replay

__all__ = ["CHECKS", "Replayed", "replay", "verify"]
