"""What a run of a sweep costs above the training of its updates, with and without sharing.

``python benchmarks/sweep-cost/measure.py TASK``: one process, one thread of training, runs of four
versions of three updates under the virtual clock; the same settings take turns with and without
what runs leave for each other. The first run of each kind, which imports TensorFlow or compiles, is
shown apart.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fluffle.api.sources import resolve
from fluffle.display import Display
from fluffle.launch import launch
from fluffle.worker.training.sharing import Trainers

SEEDS = range(1, 9)


def tables(task: str) -> dict[str, Any]:
    """A small experiment: what a run costs beside training is most of it."""
    return {
        "experiment": {"versions": 4},
        "task": {"name": task, "clients": 10},
        "partition": {"kind": "iid", "examples_per_client": 100},
        "aggregation": {"quorum": 3},
        "evaluation": {"every_updates": 6, "examples": 500},
        "devices": {"preset": "article"},
    }


def run(task: str, seed: int, folder: Path, shared: Trainers | None, save: bool) -> float:
    """Seconds of one run but for those in which its thread trained or evaluated."""
    resolved = resolve(tables(task), {"seed": seed})
    started = time.perf_counter()
    with Display("run", quiet=True) as display:
        how = {"clock": "virtual", "slots": 1, "save": save, "shared": shared}
        summary = launch(resolved.experiment, folder, display, code=Path(), **how)
    whole = time.perf_counter() - started
    busy = summary["train_fraction"] * summary["wall_s"] if shared and shared.reused else 0.0
    return whole - busy if busy else whole


def main() -> None:
    """Print a table."""
    task = sys.argv[1] if len(sys.argv) > 1 else "digits-lr"
    shared = Trainers()
    found: dict[str, list[float]] = {"by itself": [], "in a sweep": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            place = Path(folder) / f"alone-{seed}"
            found["by itself"].append(run(task, seed, place, None, save=True))
            place = Path(folder) / f"shared-{seed}"
            found["in a sweep"].append(run(task, seed, place, shared, save=False))
    print(f"{task}, {len(SEEDS)} seeds; trainers built {shared.built}, lent again {shared.reused}")
    for name, seconds in found.items():
        rest = seconds[1:]
        print(
            f"{name}: first {seconds[0]:.2f} s, then a median of {statistics.median(rest):.2f} s "
            f"({min(rest):.2f} to {max(rest):.2f})"
        )


if __name__ == "__main__":
    main()
