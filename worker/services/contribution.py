"""A site's contribution to a run, and its benefit from it: for the people at the site."""

from __future__ import annotations

from dataclasses import dataclass

from fluffle.schemas import ClientUpdate
from fluffle.schemas.sizes import human_bytes


@dataclass
class Contribution:
    """One run's account. ``first_global`` and its like are of the site's own held-out examples:
    the accuracy, or the loss where the task has none.
    """

    run_id: str
    updates: int = 0
    failures: int = 0
    examples: int = 0
    train_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    metric: str = ""
    first_global: float | None = None
    last_global: float | None = None
    last_local: float | None = None

    def add(self, update: ClientUpdate, size: int) -> None:
        """An update of so many bytes was sent."""
        self.updates += 1
        self.bytes_up += size
        self.examples += update.examples
        self.train_s += update.train_s

    def measured(self, metric: str, of_global: float, of_local: float) -> None:
        """What the global model and the one trained here are worth on held-out examples."""
        self.metric, self.last_global, self.last_local = metric, of_global, of_local
        self.first_global = of_global if self.first_global is None else self.first_global

    def summary(self) -> str:
        """One line for a person."""
        sent = f"{self.updates} updates from {self.examples:,} examples in {self.train_s:.1f} s"
        failed = f", {self.failures} trainings failed" if self.failures else ""
        size = f"{human_bytes(self.bytes_up)} up, {human_bytes(self.bytes_down)} down"
        line = f"contributed to run {self.run_id}: {sent}{failed}; {size}"
        if self.first_global is None or self.last_global is None or self.last_local is None:
            return line
        before, after, own = (
            shown(self.metric, value)
            for value in (self.first_global, self.last_global, self.last_local)
        )
        return f"{line}; {self.metric} here: global {before} at first, {after} at last, local {own}"


def shown(metric: str, value: float) -> str:
    """A measured value for a person."""
    return f"{value:.2%}" if metric == "accuracy" else f"{value:.4f}"
