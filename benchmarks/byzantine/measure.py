"""Which rules hold against one client in five that flips the sign of what it learned.

Rounds of all clients, softmax regression on MNIST, under the virtual clock. README.md says what to
expect.

    python benchmarks/byzantine/measure.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from sweep import Tables, save, sweep

CLIENTS, BAD, ROUNDS = 20, 4, 30
SEEDS = (1, 2, 3)
#: Name -> (share of hostile clients, how much longer than learned their flipped delta is).
ATTACKS = {"none": (0.0, 1.0), "x 1": (0.2, 1.0), "x 10": (0.2, 10.0)}
PARTITIONS: Tables = {
    "iid": {"kind": "iid"},
    # Concentration 0.5 for each of ten classes.
    "skewed": {"kind": "dirichlet", "alpha": 5.0},
}
RULES: Tables = {
    "mean": {"strategy": "fedbuff"},
    "norm bounding, M = 1": {"strategy": "norm-bounding", "norm_bound": 1.0},
    "median": {"strategy": "median"},
    "trimmed mean, 0.2": {"strategy": "trimmed-mean", "trim": 0.2},
    "Krum, f = 4": {"strategy": "krum", "byzantine_updates": BAD},
    "multi-Krum, f = 4": {"strategy": "multi-krum", "byzantine_updates": BAD},
}


def tables(rule: str, partition: str, attack: str, seed: int) -> Tables:
    """The experiment of one run."""
    share, scale = ATTACKS[attack]
    return {
        "experiment": {"versions": ROUNDS, "seed": seed},
        "task": {"name": "mnist-lr", "clients": CLIENTS},
        "partition": {**PARTITIONS[partition], "examples_per_client": 200},
        "training": {
            **{"epochs": 1, "batch_size": 20, "optimizer": "sgd", "learning_rate": 0.1},
        },
        "participation": {"mode": "cohort"},
        "aggregation": {"quorum": CLIENTS, "deadline_s": 1000.0, **RULES[rule]},
        "evaluation": {"every_updates": 3 * CLIENTS, "examples": 2000},
        "devices": {"byzantine": share, "byzantine_scale": scale},
    }


def measure(jobs: list[tuple[str, str, str, int]]) -> list[dict[str, Any]]:
    """The test accuracy by version of each run."""
    rows = [
        {
            **{"rule": rule, "partition": partition, "attack": attack, "seed": seed},
            "accuracy": {m.version: m.accuracy for m in run},
        }
        for (rule, partition, attack, seed), run in sweep((job, tables(*job)) for job in jobs)
    ]
    return sorted(rows, key=lambda row: jobs.index(_job(row)))


def _job(row: dict[str, Any]) -> tuple[str, str, str, int]:
    return row["rule"], row["partition"], row["attack"], row["seed"]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy by round: a panel for each partition and attack, means and ranges over seeds."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(PARTITIONS), len(ATTACKS), figsize=(10, 5.5), layout="constrained",
        sharex=True, sharey=True,
    )  # fmt: skip
    for (i, partition), (j, attack) in itertools.product(enumerate(PARTITIONS), enumerate(ATTACKS)):
        axis = axes[i][j]
        for rule in RULES:
            curves = [r["accuracy"] for r in rows if _job(r)[:3] == (rule, partition, attack)]
            versions = sorted(curves[0])
            values = [[curve[v] for curve in curves] for v in versions]
            axis.plot(versions, [statistics.mean(v) for v in values], label=rule, linewidth=1.2)
            axis.fill_between(
                versions, [min(v) for v in values], [max(v) for v in values], alpha=0.15
            )
        axis.set_title(f"{partition}, {'no attack' if attack == 'none' else f'sign flip {attack}'}")
        axis.set(ylim=(0, 1))
        if i == len(PARTITIONS) - 1:
            axis.set_xlabel("round")
        if j == 0:
            axis.set_ylabel("test accuracy")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    save(figure, path)


def table(rows: list[dict[str, Any]]) -> None:
    """Mean and standard deviation of the last round's accuracy."""
    columns = list(itertools.product(PARTITIONS, ATTACKS))
    heads = [f"{p}, {'no attack' if a == 'none' else a}" for p, a in columns]
    print("| rule | " + " | ".join(heads) + " |")
    print("| --- |" + " --- |" * len(columns))
    for rule in RULES:
        cells = []
        for partition, attack in columns:
            runs = [r for r in rows if _job(r)[:3] == (rule, partition, attack)]
            last = [100 * r["accuracy"][max(r["accuracy"])] for r in runs]
            spread = statistics.stdev(last) if len(last) > 1 else 0.0
            cells.append(f"{statistics.mean(last):.1f} ± {spread:.1f}")
        print(f"| {rule} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    started = time.perf_counter()
    jobs = list(itertools.product(RULES, PARTITIONS, ATTACKS, SEEDS[: options.seeds]))
    rows = measure(jobs)
    options.out.write_text(json.dumps(rows) + "\n")
    draw(rows, options.out.with_suffix(".svg"))
    table(rows)
    print(f"\n{len(jobs)} runs in {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
