"""Curves of a run in TensorBoard or MLflow, while it goes on.

A thread of its own reads the ledger, like any report: nothing waits for it, and what it shows is
durable. Each trace ``tag`` grows by ``step``, the version. A tracker knows the last step of every
tag that it holds (it asks the event files, or the server), and writes only what comes after: a run
that is resumed, or tracked again, has no point twice.

    ledger ─(history, every few seconds)─> rows ─> points ─> tracker: those after its last step
"""

from __future__ import annotations

from fluffle.tracking.follower import tracked, trackers
from fluffle.tracking.tracker import Tracker

__all__ = ["Tracker", "tracked", "trackers"]
