"""Engines side by side on small clients: bare, and under the virtual clock. README.md says more.

python benchmarks/engines/measure.py [--repeats 3] [--updates 3000] [--lanes 1 8 16 50]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def _simulation() -> Any:
    """benchmarks/simulation/measure.py, which times the same workload."""
    path = ROOT / "benchmarks" / "simulation" / "measure.py"
    spec = importlib.util.spec_from_file_location("simulation_measure", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 8, 16, 50])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    told = parser.parse_args()
    simulation, threads = _simulation(), told.threads
    versions = f"experiment.versions={max(10, told.updates // 50)}"
    found: dict[str, list[float]] = {}
    for _ in range(told.repeats):  # side by side, so that a slow minute slows all
        for lanes in (0, *told.lanes):
            name = f"jax, {lanes} lanes" if lanes else "tensorflow"
            rate = simulation.bare(threads, told.updates, *([str(lanes)] if lanes else []))
            found.setdefault(f"bare: {name}", []).append(rate)
            engine = (f"training.lanes={lanes}", "training.engine=jax") if lanes else ()
            rate, _summary = simulation.simulated(threads, versions, *engine)
            found.setdefault(f"virtual clock: {name}", []).append(rate)
    reference = statistics.median(found["bare: tensorflow"])
    print("| what | updates/s | of the bare TensorFlow loop |\n| --- | --- | --- |")
    for name, rates in sorted(found.items()):
        middle = statistics.median(rates)
        print(f"| {name} | {middle:.0f} | {middle / reference:.2f} |")


if __name__ == "__main__":
    main()
