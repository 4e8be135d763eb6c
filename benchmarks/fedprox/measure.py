"""FedProx against FedAvg on synthetic data with stragglers: partial work and the proximal term.

The setting of FedProx (Li et al., MLSys 2020, arXiv 1812.06127), sections 5.1 to 5.3, for its four
synthetic data sets: 30 devices, 10 in a round, 20 local epochs. README.md says what to expect.

    python benchmarks/fedprox/measure.py
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
from collections.abc import Iterator, Sequence
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
#: Which the paper has for its synthetic data.
PAPERS_MU = 1.0
#: What is compared everywhere. None is FedAvg, which drops the stragglers.
METHODS = (None, 0.0, PAPERS_MU)
#: What the claim is about; every mu is tried there.
HIGHLY_HETEROGENEOUS = 0.9
ROUNDS, EPOCHS = 100, 20
#: The first ones whose devices have at most 5,000 training examples together.
SEEDS = (1, 2, 21)
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
    from fluffle.aggregator.ledger.writer import Ledger
    from fluffle.schemas import Experiment, Plan
    from fluffle.simulation.virtual import VirtualRun
    from fluffle.worker.tasks.registry import load_task

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


def all_jobs(seeds: int) -> Iterator[Job]:
    """FedAvg, partial work, and that with the proximal term.

    Without stragglers the first two are one.
    """
    for seed, data, stragglers in itertools.product(SEEDS[:seeds], DATASETS, STRAGGLERS):
        mus = MUS if stragglers == HIGHLY_HETEROGENEOUS else (0.0, PAPERS_MU)
        for mu in (None, *mus) if stragglers else mus:
            yield Job(data, stragglers, mu, seed)


def measure_all(jobs: list[Job], out: Path, resume: bool, processes: int) -> list[Row]:
    """Every row; ``out`` has it as soon as it is known."""
    from fluffle.worker.training.runtime import configure

    rows: list[Row] = json.loads(out.read_text()) if resume and out.exists() else []
    known = {job_of(row) for row in rows}
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, configure, (1,), maxtasksperchild=40) as pool:
        for row in pool.imap_unordered(measure, [job for job in jobs if job not in known]):
            rows.append(row)
            out.write_text("[\n" + ",\n".join(sorted(map(json.dumps, rows))) + "\n]\n")
    return [row for row in rows if job_of(row) in set(jobs)]


def job_of(row: Row) -> Job:
    """Which run a row is of."""
    return Job(**{field: row[field] for field in Job._fields})


def cell(
    rows: list[Row], data: str, stragglers: float, mus: Sequence[float | None]
) -> dict[float | None, list[Row]]:
    """The runs of some methods, seed by seed: those seeds that all of the methods have."""
    # Without stragglers nobody is dropped: FedAvg is mu = 0.
    runs = {mu: 0.0 if mu is None and not stragglers else mu for mu in mus}
    found = {
        mu: {
            int(row["seed"]): row
            for row in rows
            if (row["data"], row["stragglers"], row["mu"]) == (data, stragglers, run)
        }
        for mu, run in runs.items()
    }
    seeds = sorted(set.intersection(*(set(of_one) for of_one in found.values())))
    return {mu: [of_one[seed] for seed in seeds] for mu, of_one in found.items()}


def percent(rows: list[Row]) -> str:
    """Final accuracy: mean and standard deviation over seeds."""
    values = [100 * row["final"] for row in rows]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def print_tables(rows: list[Row]) -> None:
    """Accuracy of every method; every mu where most are stragglers; mean gains over FedAvg."""
    print("| data | stragglers | seeds | FedAvg (drops) | mu = 0 | mu = 1 |\n" + "| --- " * 6 + "|")
    for data, stragglers in itertools.product(DATASETS, STRAGGLERS):
        found = cell(rows, data, stragglers, METHODS)
        cells = " | ".join(map(percent, found.values()))
        print(f"| {data} | {stragglers:.0%} | {len(found[None])} | {cells} |")

    share = HIGHLY_HETEROGENEOUS
    heads = " | ".join(f"mu = {mu:g}" for mu in MUS)
    print(f"\n| {share:.0%} stragglers | seeds | {heads} |\n" + "| --- " * (2 + len(MUS)) + "|")
    for data in DATASETS:
        found = cell(rows, data, share, MUS)
        print(f"| {data} | {len(found[0.0])} | {' | '.join(map(percent, found.values()))} |")

    print("\n| gain over FedAvg on | accuracy of | stragglers | mu = 0 | mu = 1 | best mu |")
    print("| --- " * 6 + "|")
    rules = {"final": f"the last {LAST} rounds", "stopped": "the paper's rule"}
    for (name, members), (key, rule) in itertools.product(GROUPS.items(), rules.items()):
        for stragglers in STRAGGLERS:
            each = [gains(cell(rows, data, stragglers, METHODS), key) for data in members]
            means = [f"{statistics.mean(g[mu] for g in each):+.1f}" for mu in (0.0, PAPERS_MU)]
            means.append("–")
            if stragglers == share:
                each = [gains(cell(rows, data, share, (None, *MUS)), key) for data in members]
                means[-1] = f"{statistics.mean(max(g.values()) for g in each):+.1f}"
            print(f"| {name} | {rule} | {stragglers:.0%} | {' | '.join(means)} |")


def gains(runs: dict[float | None, list[Row]], key: str) -> dict[float, float]:
    """Percentage points over FedAvg of every mu, the mean over seeds."""
    return {
        mu: 100 * statistics.mean(a[key] - b[key] for a, b in zip(of_mu, runs[None], strict=True))
        for mu, of_mu in runs.items()
        if mu is not None
    }


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
        found = cell(rows, data, stragglers, METHODS).values()
        for name, runs, style in zip(names, found, (":", "--", "-"), strict=True):
            curves = [row["accuracy"] for row in runs]
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
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--tables", action="store_true", help="of what --out holds; run nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    started = time.perf_counter()
    if options.tables:
        rows = json.loads(options.out.read_text())
    else:
        jobs = list(all_jobs(options.seeds))
        rows = measure_all(jobs, options.out, options.resume, options.processes)
    print_tables(rows)
    draw(rows, options.out.with_suffix(".svg"))
    print(f"\n{len(rows)} runs, {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
