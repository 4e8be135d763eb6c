"""FedProx against FedAvg on synthetic data with stragglers: partial work and the proximal term.

The setting of FedProx (Li et al., MLSys 2020, arXiv 1812.06127), sections 5.1 to 5.3, for its four
synthetic data sets: 30 devices, 10 in a round, 20 local epochs. README.md says what to expect.

    python benchmarks/fedprox/measure.py             # the table and the figure
    python benchmarks/fedprox/measure.py --search    # every mu of the paper's set, on another seed
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]

DATASETS: dict[str, dict[str, Any]] = {
    "IID": {"synthetic_iid": True},
    "(0, 0)": {"synthetic_alpha": 0.0, "synthetic_beta": 0.0},
    "(0.5, 0.5)": {"synthetic_alpha": 0.5, "synthetic_beta": 0.5},
    "(1, 1)": {"synthetic_alpha": 1.0, "synthetic_beta": 1.0},
}
#: Of which gains are printed: the one synthetic data set in the paper's average, and all that are
#: heterogeneous.
GROUPS = {"(1, 1)": ["(1, 1)"], "all but IID, mean": ["(0, 0)", "(0.5, 0.5)", "(1, 1)"]}
STRAGGLERS = (0.0, 0.5, 0.9)
MUS = (0.0, 0.001, 0.01, 0.1, 1.0)
ROUNDS, EPOCHS = 200, 20
#: The first ones whose devices have at most 10,000 examples together.
SEEDS = (1, 2, 4)
#: The search has a seed of its own.
SEARCH_SEED, SEARCH_STRAGGLERS = 21, 0.9
#: Which the paper has for its synthetic data.
PAPERS_MU = 1.0
#: Chosen by ``--search``, of those above 0: the highest final accuracy.
BEST: dict[str, float] = {"IID": 1.0, "(0, 0)": 1.0, "(0.5, 0.5)": 1.0, "(1, 1)": 1.0}
#: Curves are kept for every so many rounds.
EVERY = 5
#: "Final" is the mean over so many last rounds.
LAST = 10


class Job(NamedTuple):
    """One run. ``mu`` None is FedAvg, which drops the stragglers."""

    data: str
    stragglers: float
    mu: float | None
    seed: int
    rounds: int = ROUNDS
    epochs: int = EPOCHS


def document(job: Job) -> dict[str, Any]:
    """The experiment of a run.

    What FedAvg drops is a turn that is lost: the round ends at its deadline, with whoever did all
    epochs. Where nobody did, others are chosen in their place.
    """
    stragglers: dict[str, Any] = {"stragglers": job.stragglers}
    if job.mu is None:
        stragglers = {"dropout": job.stragglers, "dropout_at": "before_training"}
    return {
        "experiment": {"versions": job.rounds, "seed": job.seed},
        "task": {"name": "synthetic-lr", "clients": 30, **DATASETS[job.data]},
        "partition": {"kind": "natural"},
        "training": {
            **{"epochs": job.epochs, "batch_size": 10, "optimizer": "sgd"},
            **{"learning_rate": 0.01, "proximal_mu": job.mu or 0.0},
        },
        "participation": {
            **{"mode": "cohort", "sampling_rate": 1 / 3, "assignment_deadline_s": 1.5},
        },
        "aggregation": {"strategy": "fedavg", "deadline_s": 1.0, "keep_versions": job.rounds + 1},
        "evaluation": {"every_updates": 1},
        "devices": stragglers,
    }


def measure(job: Job) -> Row:
    """Run one experiment: test accuracy and training loss of its versions."""
    from aggregator.ledger import Ledger
    from schemas import Experiment, Plan
    from simulation.virtual import VirtualRun
    from worker.tasks import load_task

    experiment = Experiment.model_validate(document(job))
    with tempfile.TemporaryDirectory() as folder:
        VirtualRun(experiment, Path(folder), run_id="run", slots=1).run()
        ledger = Ledger(Path(folder))
        evaluations = ledger.query("SELECT metrics FROM evaluations ORDER BY version")
        files = ledger.query("SELECT file FROM versions ORDER BY version")
        updates = ledger.count("updates WHERE version > 0")
        examples = load_task(Plan.of(experiment, "weights")).dataset()
        losses = [training_loss(ledger.store.read(name), *examples) for (name,) in files]
        ledger.close()
    accuracies = [json.loads(metrics)["accuracy"] for (metrics,) in evaluations]
    at = stop_of(losses)
    return {
        **job._asdict(),
        "updates": updates,
        "final": round(statistics.mean(accuracies[-LAST:]), 4),
        "stopped_at": at,
        "stopped": round(accuracies[at], 4),
        "accuracy": [round(a, 3) for a in accuracies[::EVERY]],
        "loss": [round(f, 3) for f in losses[::EVERY]],
    }


def training_loss(weights: dict[str, Any], x: Any, y: Any) -> float:
    """The paper's f(w): the mean cross-entropy over the training examples of all devices."""
    import numpy as np

    kernel, bias = (weights[f"model/trainable/{i}"].astype(float) for i in (0, 1))
    logits = x @ kernel + bias
    top = logits.max(axis=1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    mean: float = np.mean(log_sum - logits[np.arange(len(y)), y]).item()
    return mean


def stop_of(losses: list[float]) -> int:
    """The round whose accuracy the paper compares (appendix C.3.2).

    The first that has converged, |f_t - f_{t-1}| < 0.0001, or diverged, f_t - f_{t-10} > 1; else
    the last.
    """
    for t in range(1, len(losses)):
        converged = abs(losses[t] - losses[t - 1]) < 1e-4
        if converged or (t >= 10 and losses[t] - losses[t - 10] > 1):
            return t
    return len(losses) - 1


def search() -> Iterator[Job]:
    """Every mu, on every data set."""
    for data, mu in itertools.product(DATASETS, MUS):
        yield Job(data, SEARCH_STRAGGLERS, mu, SEARCH_SEED)


def table_jobs(seeds: int) -> Iterator[Job]:
    """FedAvg, partial work, and that with the proximal term.

    Without stragglers the first two are one.
    """
    for seed, data, stragglers in itertools.product(SEEDS[:seeds], DATASETS, STRAGGLERS):
        for mu in dict.fromkeys((None, 0.0, PAPERS_MU, BEST[data])):
            if mu is not None or stragglers:
                yield Job(data, stragglers, mu, seed)


def measure_all(jobs: list[Job], out: Path, resume: bool) -> list[Row]:
    """One process for each core. ``out`` has every row as soon as it is known."""
    from worker.runtime import configure

    rows: list[Row] = json.loads(out.read_text()) if resume and out.exists() else []
    known = {job_of(row) for row in rows}
    context = multiprocessing.get_context("spawn")
    with context.Pool(os.cpu_count(), configure, (1,), maxtasksperchild=40) as pool:
        for row in pool.imap_unordered(measure, [job for job in jobs if job not in known]):
            rows.append(row)
            out.write_text("[\n" + ",\n".join(sorted(map(json.dumps, rows))) + "\n]\n")
    return [row for row in rows if job_of(row) in set(jobs)]


def job_of(row: Row) -> Job:
    """Which run a row is of."""
    return Job(**{field: row[field] for field in Job._fields})


def select(rows: list[Row], data: str, stragglers: float, mu: float | None) -> list[Row]:
    """The runs of one cell of the table, seed by seed."""
    dropping = mu is None and stragglers > 0
    wanted = (data, stragglers, None if dropping else mu or 0.0)
    found = [row for row in rows if (row["data"], row["stragglers"], row["mu"]) == wanted]
    return sorted(found, key=lambda row: int(row["seed"]))


def percent(rows: list[Row], key: str = "final") -> str:
    """Mean and standard deviation over seeds."""
    values = [100 * row[key] for row in rows]
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if values[1:] else 0:.1f}"


def print_table(rows: list[Row]) -> None:
    """Every data set and share of stragglers; then the mean gains over FedAvg."""
    print("| data | stragglers | FedAvg (drops) | mu = 0 | mu = 1 | chosen mu |")
    print("| --- | --- | --- | --- | --- | --- |")
    for data, stragglers in itertools.product(DATASETS, STRAGGLERS):
        cells = (percent(select(rows, data, stragglers, mu)) for mu in methods(data))
        print(f"| {data} | {stragglers:.0%} | {' | '.join(cells)} (mu = {BEST[data]:g}) |")
    print("\n| gain over FedAvg on | accuracy of | stragglers | mu = 0 | mu = 1 | chosen mu |")
    print("| --- | --- | --- | --- | --- | --- |")
    rules = {"final": f"the last {LAST} rounds", "stopped": "the paper's rule"}
    for (name, members), (key, rule) in itertools.product(GROUPS.items(), rules.items()):
        for stragglers in STRAGGLERS:
            gains = [gains_of(rows, data, stragglers, key) for data in members]
            cells = (f"{statistics.mean(column):+.1f}" for column in zip(*gains, strict=True))
            print(f"| {name} | {rule} | {stragglers:.0%} | {' | '.join(cells)} |")


def methods(data: str) -> tuple[float | None, ...]:
    """What the table compares: FedAvg, partial work, the paper's mu, the chosen one."""
    return None, 0.0, PAPERS_MU, BEST[data]


def gains_of(rows: list[Row], data: str, stragglers: float, key: str) -> list[float]:
    """Percentage points of accuracy over FedAvg, the mean over seeds, of each other method."""
    fedavg, *others = (select(rows, data, stragglers, mu) for mu in methods(data))
    return [
        100 * statistics.mean(a[key] - b[key] for a, b in zip(other, fedavg, strict=True))
        for other in others
    ]


def print_search(rows: list[Row]) -> None:
    """Final accuracy of every mu."""
    print("| data | " + " | ".join(f"mu = {mu:g}" for mu in MUS) + " |")
    print("| --- " * (1 + len(MUS)) + "|")
    for data in DATASETS:
        found = [select(rows, data, SEARCH_STRAGGLERS, mu)[0]["final"] for mu in MUS]
        print(f"| {data} | " + " | ".join(f"{value:.1%}" for value in found) + " |")


def draw(rows: list[Row], path: Path) -> None:
    """Test accuracy by round: the mean over seeds, and their range."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "fluffle"
    figure, axes = pyplot.subplots(
        len(STRAGGLERS), len(DATASETS), figsize=(11, 7), layout="constrained", sharex=True,
        sharey="col", squeeze=False,
    )  # fmt: skip
    names = ("FedAvg: drops stragglers", "FedProx, mu = 0: partial work", "FedProx, mu = 1")
    for (i, stragglers), (j, data) in itertools.product(enumerate(STRAGGLERS), enumerate(DATASETS)):
        axis = axes[i][j]
        for name, mu, style in zip(names, (None, 0.0, PAPERS_MU), (":", "--", "-"), strict=True):
            curves = [row["accuracy"] for row in select(rows, data, stragglers, mu)]
            rounds = [EVERY * k for k in range(len(curves[0]))]
            by_round = list(zip(*curves, strict=True))
            (line,) = axis.plot(rounds, [*map(statistics.mean, by_round)], style, label=name)
            low, high = [*map(min, by_round)], [*map(max, by_round)]
            axis.fill_between(rounds, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.grid(alpha=0.3)
        if i == 0:
            axis.set_title(data if data == "IID" else f"synthetic{data}")
        if j == 0:
            axis.set_ylabel(f"{stragglers:.0%} stragglers\ntest accuracy")
    for axis in axes[-1]:
        axis.set_xlabel("round")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    name = "search.json" if options.search else "results.json"
    out: Path = options.out or Path(__file__).with_name(name)
    started = time.perf_counter()
    jobs = list(search() if options.search else table_jobs(options.seeds))
    rows = measure_all(jobs, out, options.resume)
    if options.search:
        print_search(rows)
    else:
        print_table(rows)
        draw(rows, out.with_suffix(".svg"))
    print(f"\n{len(jobs)} runs in {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
