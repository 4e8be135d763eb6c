"""Rounds to a target against local epochs and similarity: SGD, FedAvg, SCAFFOLD.

The shape of Table 3 of SCAFFOLD (arXiv 1910.06378) on MNIST. README.md says what to expect.

    python benchmarks/scaffold/measure.py --search    # the grid; writes settings.json
    python benchmarks/scaffold/measure.py             # the table, with those settings
    python benchmarks/scaffold/measure.py --resume    # only the runs that results.jsonl has not
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from sweep import reached, sweep

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
TARGET, MOST_ROUNDS = 0.87, 400
#: Four clients with a digit or two in a round: a third of the classes, as in the paper.
CLIENTS, SAMPLED = 20, 0.2
#: Of each client; a batch is a fifth of them, so an epoch is five steps.
EXAMPLES = 150
SIMILARITIES = (0, 10, 100)
EPOCHS = (1, 5, 10, 20)
SEEDS = tuple(range(1, 9))
#: The search has seeds of its own.
SEARCH_SEEDS = (100, 101, 102, 103)
#: The more local steps, the smaller each of them.
LEARNING_RATES = {
    ("SGD", 1): (0.3, 1.0, 3.0, 10.0, 30.0),
    **{(method, 1): (0.3, 1.0, 3.0) for method in ("FedAvg", "SCAFFOLD")},
    **{
        (method, e): (0.03, 0.1, 0.3, 1.0) for method in ("FedAvg", "SCAFFOLD") for e in (5, 10, 20)
    },
}


class Cell(NamedTuple):
    """One entry of the table."""

    method: str
    epochs: int
    similarity: int

    @property
    def name(self) -> str:
        """In settings.json."""
        return f"{self.method}, {self.epochs} epochs, {self.similarity} %"


CELLS = [
    *(Cell("SGD", 1, similarity) for similarity in SIMILARITIES),
    *itertools.starmap(Cell, itertools.product(("FedAvg", "SCAFFOLD"), EPOCHS, SIMILARITIES)),
]


def document(cell: Cell, learning_rate: float, seed: int) -> dict[str, Any]:
    """The experiment of a run. SGD: one step along the gradient of all of a client's examples."""
    whole = cell.method == "SGD"
    scaffold = cell.method == "SCAFFOLD"
    return {
        "experiment": {"versions": MOST_ROUNDS, "seed": seed, "target_accuracy": TARGET},
        "task": {"name": "mnist-lr", "clients": CLIENTS, "validation": 0.0},
        "partition": {
            **{"kind": "similarity", "similarity": float(cell.similarity)},
            "examples_per_client": EXAMPLES,
        },
        "training": {
            **{"epochs": cell.epochs, "batch_size": EXAMPLES if whole else EXAMPLES // 5},
            **{"optimizer": "sgd", "learning_rate": learning_rate},
        },
        "participation": {"mode": "cohort", "sampling_rate": SAMPLED},
        "aggregation": (
            {"strategy": "scaffold"} if scaffold else {"strategy": "fedavg", "weighting": "uniform"}
        ),
        "evaluation": {"every_updates": round(SAMPLED * CLIENTS), "examples": 2000},
    }


def recorded() -> list[dict[str, Any]]:
    """What results.jsonl has, one run a line."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [{**row, "cell": Cell(*row["cell"])} for row in map(json.loads, lines)]


def measure(jobs: list[tuple[Cell, float, int]], resume: bool) -> list[dict[str, Any]]:
    """Of each job what was found, recorded as it comes. One process for each core."""
    rows = recorded()
    known = {(row["cell"], row["learning_rate"], row["seed"]): row for row in rows}
    todo = [job for job in jobs if job not in known or not resume]
    RESULTS.write_text(
        "".join(json.dumps(row) + "\n" for job, row in known.items() if job not in todo)
    )
    with RESULTS.open("a") as file:
        for (cell, rate, seed), run in sweep((job, document(*job)) for job in todo):
            met = reached(run, TARGET)
            row = {
                **{"cell": cell, "learning_rate": rate, "seed": seed},
                "rounds": met.version if met else None,
                "best": max(m.accuracy for m in run),
            }
            file.write(json.dumps(row) + "\n")
            file.flush()
    known = {(row["cell"], row["learning_rate"], row["seed"]): row for row in recorded()}
    return [known[job] for job in jobs]


def search(resume: bool) -> dict[str, float]:
    """The learning rate of each cell: the fewest rounds on average."""
    jobs = [
        (cell, rate, seed)
        for cell in CELLS
        for rate in LEARNING_RATES[cell.method, cell.epochs]
        for seed in SEARCH_SEEDS
    ]
    rows = measure(jobs, resume)
    chosen = {}
    for cell in CELLS:
        means = {
            rate: mean_rounds(
                [row for row in rows if row["cell"] == cell and row["learning_rate"] == rate]
            )
            for rate in LEARNING_RATES[cell.method, cell.epochs]
        }
        print(f"{cell.name}: {means}", flush=True)
        chosen[cell.name] = min(means, key=lambda rate: means[rate])
    return chosen


def mean_rounds(rows: list[dict[str, Any]]) -> float:
    """Over seeds; a run that has not arrived counts as one round more than it had."""
    return statistics.mean(row["rounds"] or MOST_ROUNDS + 1 for row in rows)


def spread(rounds: list[int | None]) -> str:
    """Mean and range over seeds; how many arrived where not all did."""
    met = [r for r in rounds if r is not None]
    if not met:
        return f"{MOST_ROUNDS}+"
    text = f"{statistics.mean(met):.0f} ({min(met)}-{max(met)})"
    return text if len(met) == len(rounds) else f"{text}, {len(met)} of {len(rounds)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    settings = HERE / "settings.json"
    if options.search:
        settings.write_text(json.dumps(search(options.resume), indent=1) + "\n")
        return
    chosen = json.loads(settings.read_text())
    jobs = [(cell, chosen[cell.name], seed) for seed in SEEDS for cell in CELLS]
    rows = measure(jobs, options.resume)
    print("| | local epochs | 0 % similar | 10 % | 100 % |\n| --- | --- | --- | --- | --- |")
    for method, epochs in dict.fromkeys((cell.method, cell.epochs) for cell in CELLS):
        entries = []
        for similarity in SIMILARITIES:
            cell = Cell(method, epochs, similarity)
            rounds = [row["rounds"] for row in rows if row["cell"] == cell]
            entries.append(f"{spread(rounds)} at {chosen[cell.name]:g}")
        print(f"| {method} | {'1 step' if method == 'SGD' else epochs} | {' | '.join(entries)} |")
    print(f"\n{len(jobs)} runs in {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
