"""Client updates and virtual time to a target against concurrency: sync FedAvg, FedBuff, FedAsync.

The setting of FedBuff (arXiv 2106.06639) and PAPAYA (arXiv 2111.04877) in small: 200 clients of 25
MNIST images, softmax regression, half-normal durations. README.md says what to expect.

    python benchmarks/fedbuff/measure.py             # the table, ten minutes on 2 cores
    python benchmarks/fedbuff/measure.py --search    # the grid that the settings were chosen from
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from sweep import Tables, merged, reached, save, sweep

TARGET = 0.85
CONCURRENCY = (10, 50, 100, 150, 200)
SEEDS = (1, 2, 3, 4, 5)
#: The search has a seed and a concurrency of its own.
SEARCH_SEED, SEARCH_CONCURRENCY = 100, 50
LEARNING_RATES = (0.03, 0.1, 0.3, 1.0, 2.0)
SERVER_LEARNING_RATES = (0.5, 1.0, 2.0, 4.0)
MIXINGS = (0.1, 0.2, 0.4, 0.8)

COMMON: Tables = {
    "experiment": {"versions": 20_000, "target_accuracy": TARGET, "max_minutes": 100.0},
    "task": {"name": "mnist-lr", "clients": 200, "validation": 0.0},
    # Concentration 0.5 for each of ten balanced classes.
    "partition": {"kind": "dirichlet", "alpha": 5.0, "examples_per_client": 25},
    "training": {"epochs": 1, "batch_size": 5, "optimizer": "sgd"},
    "aggregation": {"deadline_s": 10_000.0},
    "evaluation": {"every_updates": 10},
    # The mean of |N(0, 1)| is 0.798.
    "devices": {"delay": "half_normal", "delay_s": 0.798, "delay_of": "turn"},
}


def sync(concurrency: int, over: float = 1.0, *, learning_rate: float) -> Tables:
    """Rounds of FedAvg: ``concurrency`` clients at a time, over-selection included."""
    wanted = max(1, round(concurrency / over))
    return {
        "training": {"learning_rate": learning_rate},
        "participation": {
            **{"mode": "cohort", "sampling_rate": wanted / 200},
            **{"over_selection": min(over, concurrency / wanted)},
        },
        "aggregation": {"strategy": "fedavg"},
    }


def fedbuff(concurrency: int, *, learning_rate: float, server_learning_rate: float) -> Tables:
    return {
        "training": {"learning_rate": learning_rate},
        "participation": {"concurrency": concurrency},
        "aggregation": {
            **{"strategy": "fedbuff", "quorum": 10},
            **{"server_learning_rate": server_learning_rate},
        },
    }


def fedasync(concurrency: int, *, learning_rate: float, mixing: float) -> Tables:
    return {
        "training": {"learning_rate": learning_rate},
        "participation": {"concurrency": concurrency},
        "aggregation": {"strategy": "fedasync", "mixing": mixing},
    }


#: Chosen by ``--search``: the fewest updates to the target at concurrency 50.
METHODS: dict[str, Any] = {
    "sync FedAvg": lambda m: sync(m, learning_rate=1.0),
    "sync FedAvg, 1.3 over-selection": lambda m: sync(m, 1.3, learning_rate=1.0),
    "FedBuff, K = 10": lambda m: fedbuff(m, learning_rate=0.3, server_learning_rate=1.0),
    "FedAsync": lambda m: fedasync(m, learning_rate=1.0, mixing=0.2),
}


def grid() -> Iterable[tuple[str, Tables]]:
    """Everything that was tried."""
    m = SEARCH_CONCURRENCY
    for rate in LEARNING_RATES:
        yield f"sync FedAvg, {rate}", sync(m, learning_rate=rate)
        for server in SERVER_LEARNING_RATES:
            tables = fedbuff(m, learning_rate=rate, server_learning_rate=server)
            yield f"FedBuff, {rate}, server {server}", tables
        for mixing in MIXINGS:
            tables = fedasync(m, learning_rate=rate, mixing=mixing)
            yield f"FedAsync, {rate}, mixing {mixing}", tables


def measure(jobs: Iterable[tuple[str, int, int, Tables]]) -> list[dict[str, Any]]:
    """Of each run the updates and virtual seconds to the target, None where it was not met."""
    documents = {
        (name, concurrency, seed): merged(COMMON, tables, {"experiment": {"seed": seed}})
        for name, concurrency, seed, tables in jobs
    }
    rows = []
    for (name, concurrency, seed), run in sweep(documents.items()):
        met = reached(run, TARGET)
        rows.append(
            {
                **{"name": name, "concurrency": concurrency, "seed": seed},
                "best": max(m.accuracy for m in run),
                "updates": met.updates if met else None,
                "time": met.at if met else None,
            }
        )
    return rows


def spread(values: list[float | None]) -> str:
    met = [value for value in values if value is not None]
    if len(met) < len(values):
        return f"{len(met)} of {len(values)} runs"
    return f"{statistics.mean(met):.1f} ± {statistics.stdev(met):.1f}"


def speed_up(of: list[float | None], over: list[float | None]) -> str:
    """How many times as long the first takes, by the means; – where one never arrived."""
    first, second = ([t for t in times if t is not None] for times in (of, over))
    if len(first) < len(of) or len(second) < len(over):
        return "–"
    return f"{statistics.mean(first) / statistics.mean(second):.1f}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Virtual time and updates to the target against concurrency: means and spread over seeds."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, marker in zip(METHODS, "os^D", strict=True):
        for axis, key in zip(axes, ("time", "updates"), strict=True):
            points = [
                [r[key] for r in rows if r["name"] == name and r["concurrency"] == m and r[key]]
                for m in CONCURRENCY
            ]
            means = [statistics.mean(values) for values in points]
            errors = [statistics.stdev(values) for values in points]
            axis.errorbar(CONCURRENCY, means, errors, label=name, marker=marker, capsize=2)
            axis.set(xlabel="clients in flight", yscale="log")
    axes[0].set(ylabel=f"virtual time to {TARGET:.0%} accuracy (s)")
    axes[1].set(ylabel=f"client updates to {TARGET:.0%} accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    started = time.perf_counter()
    if options.search:
        jobs = [(name, SEARCH_CONCURRENCY, SEARCH_SEED, tables) for name, tables in grid()]
        for row in sorted(measure(jobs), key=lambda row: (row["updates"] or 10**9, row["name"])):
            print(f"{row['name']}: {row['updates']} updates, best {row['best']:.3f}")
        return
    jobs = [
        (name, m, seed, make(m))
        for (name, make), m, seed in itertools.product(
            METHODS.items(), CONCURRENCY, SEEDS[: options.seeds]
        )
    ]
    rows = measure(jobs)
    options.out.write_text(json.dumps(sorted(rows, key=str), indent=0) + "\n")
    draw(rows, options.out.with_suffix(".svg"))
    print("| concurrency | method | updates to 85 % | virtual time to 85 % | times sync's |")
    print("| --- | --- | --- | --- | --- |")
    for m in CONCURRENCY:
        times = {n: [r["time"] for r in rows if r["name"] == n and r["concurrency"] == m]
                 for n in METHODS}  # fmt: skip
        for name in METHODS:
            mine = [r for r in rows if r["name"] == name and r["concurrency"] == m]
            updates = spread([r["updates"] for r in mine])
            ratio = speed_up(times["sync FedAvg"], times[name])
            print(f"| {m} | {name} | {updates} | {spread(times[name])} | {ratio} |")
    print(f"\n{len(jobs)} runs in {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
