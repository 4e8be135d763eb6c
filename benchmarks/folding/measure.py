"""What the aggregator's arithmetic costs, on this machine, in one go: folding, and robust rules.

Prints the tables of README.md. Times are the process's own (CPU), of calls taken in turn; each
figure is the median of several.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fluffle.aggregator.strategies.base import State, Strategy
from fluffle.aggregator.strategies.fold import add_scaled
from fluffle.aggregator.strategies.krum import Krum
from fluffle.aggregator.strategies.median import Median, TrimmedMean
from fluffle.aggregator.strategies.optimizers import Sgd
from fluffle.schemas import ClientUpdate, Run

PARAMETERS = 1_000_000
#: Larger than any cache, so that copying it measures the memory.
COPIED = 16_000_000

Floats = NDArray[np.float32]


def medians(cases: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of CPU that each case takes."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, work in cases.items():
            started = time.process_time()
            work()
            taken[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


def folding(repeats: int) -> None:
    """Bytes of updates folded per second against bytes read and written by a copy."""
    rng = np.random.default_rng(0)
    updates = [rng.normal(size=PARAMETERS).astype(np.float32) for _ in range(8)]
    total = np.zeros(PARAMETERS)
    source = np.ones(COPIED, np.float32)
    target = np.empty_like(source)

    def each(fold: Callable[[Floats], None]) -> Callable[[], None]:
        return lambda: [fold(update) for update in updates] and None

    def plain(update: Floats) -> None:
        np.add(total, 0.3 * update, out=total)

    def converted(update: Floats) -> None:
        np.add(total, 0.3 * update.astype(np.float64), out=total)

    taken = medians(
        {
            "copy": lambda: np.copyto(target, source),
            "blocks": each(lambda update: add_scaled(total, 0.3, update)),
            "blocks, weight 1": each(lambda update: add_scaled(total, 1.0, update)),
            "total += w * update (rounds to float32)": each(plain),
            "total += w * update.astype(float64)": each(converted),
        },
        repeats,
    )
    bandwidth = 2 * source.nbytes / taken.pop("copy")
    peak = peak_bytes(lambda: add_scaled(total, 0.3, updates[0]))
    print(f"\ncopy: {bandwidth / 1e9:.1f} GB/s, read and written\n")
    print(f"| folding {PARAMETERS:,} float32 | ms | of the copy's bandwidth |")
    print("| --- | --- | --- |")
    for name, seconds in taken.items():
        share = sum(u.nbytes for u in updates) / seconds / bandwidth
        print(f"| {name} | {1000 * seconds / len(updates):.2f} | {share:.2f} |")
    print(f"\nmemory beside the accumulator: {peak / 2**20:.1f} MiB of scratch")


def robust(rows: int, repeats: int) -> None:
    """A robust rule's whole step against NumPy's median over a stack of the same updates."""
    size = PARAMETERS
    rng = np.random.default_rng(rows)
    updates = [rng.normal(size=size).astype(np.float32) for _ in range(rows)]
    stack = np.stack(updates)

    def step(strategy: Strategy) -> Callable[[], State]:
        state = strategy.init({"trainable/0": np.zeros(size, np.float32)})
        for turn, values in enumerate(updates):
            state = strategy.accept(state, _update(values, turn), 0)
        return lambda: strategy.step(state)

    sgd = Sgd(1.0)
    cases: dict[str, Callable[[], object]] = {
        "np.median over a stack": lambda: np.median(stack, axis=0),
        "median": step(Median(sgd)),
        "trimmed mean, 0.2": step(TrimmedMean(sgd, 0.2)),
        "multi-Krum, f = 2": step(Krum(sgd, 2, None)),
    }
    taken = medians(cases, repeats)
    slowest = taken["np.median over a stack"]
    for name, work in cases.items():
        faster = f"{slowest / taken[name]:.1f} x"
        memory = f"{peak_bytes(work) / (4 * size):.2f}"
        print(f"| {rows} | {name} | {1000 * taken[name]:.0f} | {faster} | {memory} |", flush=True)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that is allocated meanwhile."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _update(values: Floats, turn: int) -> ClientUpdate:
    return ClientUpdate(
        run=Run(run_id="r", run_started=0, epoch=1),
        update_id=f"u{turn}",
        client="c",
        turn=turn,
        base_version=0,
        worker="w",
        sends="delta",
        examples=1,
        tensors={"trainable/0": values},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(f"{platform.machine()}, {os.cpu_count()} cores, NumPy {np.__version__}")
    folding(4 * repeats)
    print(f"\n| updates | a step on {PARAMETERS:,} float32 | ms | faster | memory, in models |")
    print("| --- | --- | --- | --- | --- |")
    for rows in (5, 10, 20, 50, 100):
        robust(rows, repeats)


if __name__ == "__main__":
    main()
