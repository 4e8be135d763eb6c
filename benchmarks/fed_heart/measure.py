"""FLamby's Fed-Heart-Disease, with the strategies that it has and the asynchronous ones.

    python benchmarks/fed_heart/measure.py --search    # the asynchronous settings, 240 runs
    python benchmarks/fed_heart/measure.py             # the table

Goes on where it was stopped. README.md says what to expect.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fluffle as fl
from fluffle.worker.datasets import load
from fluffle.worker.tasks.heart import standardised

HERE = Path(__file__).parent
Settings = dict[str, Any]

#: FLamby's, and one that is not among them for the search.
SEEDS = (42, 43, 44, 45, 46)
SEARCH_SEEDS = (7, 8, 9)
#: 15 rounds of 4 hospitals: what every method may train.
ROUNDS, HOSPITALS = 15, 4

COMMON: dict[str, Any] = {
    "task": {"name": "heart.py:Flamby", "clients": HOSPITALS},
    "partition": {"kind": "natural"},
    "training": {"optimizer": "sgd", "batch_size": 4},
    "evaluation": {"every_updates": HOSPITALS},
    # The mean is a second; a hospital's speed is its own.
    "devices": {"delay": "exponential", "delay_s": 1.0, "delay_of": "client"},
}


NAN = float("nan")
ALONE: Settings = {"task.clients": 1, "partition.kind": "contiguous"}
FOUR: Settings = {"experiment.versions": 4, "evaluation.every_updates": 1}


def alone(trains: str) -> Settings:
    """One client, Adam, 50 epochs: FLamby's pooled and local training."""
    return {
        **{**ALONE, "experiment.versions": 1, "aggregation.strategy": "fedavg"},
        **{"task.parameters": {"trains": trains}},
        **{"participation.mode": "cohort", "training.epochs": 50},
        **{"training.optimizer": "adam", "training.learning_rate": 0.001},
        **{"evaluation.every_updates": 1},
    }


def rounds(strategy: str, rate: float, **more: Any) -> Settings:
    """Fifteen rounds of all hospitals, a hundred steps each."""
    keys = {f"aggregation.{key}": value for key, value in more.items()}
    return {
        **{"participation.mode": "cohort", "experiment.versions": ROUNDS},
        **{"training.steps": 100, "training.learning_rate": rate},
        **{"aggregation.strategy": strategy, **keys},
    }


#: FLamby's config_heart_disease.json.
_FLAMBY = {"server_beta_1": 0.9, "server_tau": 1e-8}
FLAMBY: dict[str, tuple[float, Settings]] = {
    "pooled": (0.795, alone("pooled")),
    **{
        f"local {k}": (figure, alone(str(k)))
        for k, figure in enumerate((0.784, 0.727, 0.483, 0.611))
    },
    "FedAvg": (0.748, rounds("fedavg", 0.001)),
    "FedProx": (0.748, {**rounds("fedavg", 0.001), "training.proximal_mu": 0.01}),
    "SCAFFOLD": (0.748, rounds("scaffold", 0.001)),
    "FedAdagrad": (
        0.779,
        rounds("fedadagrad", 0.003162, server_learning_rate=0.316228, **_FLAMBY),
    ),
    "FedAdam": (
        0.779,
        rounds("fedadam", 0.01, server_learning_rate=0.01, server_beta_2=0.999, **_FLAMBY),
    ),
    "FedYogi": (
        0.779,
        rounds("fedyogi", 0.003162, server_learning_rate=0.01, server_beta_2=0.999, **_FLAMBY),
    ),
    # What FLamby's weighted SCAFFOLD is not: the paper's, in which all clients weigh the same.
    "FedAvg, all weigh the same": (NAN, rounds("fedavg", 0.001, weighting="uniform")),
    # FLamby's code never hands the model on: it measures Cleveland's own, after four turns.
    "Cyclic as FLamby's code has it": (
        0.785,
        {**rounds("fedavg", 0.01), **ALONE, "task.parameters": {"trains": "0"}, **FOUR},
    ),
    "Cyclic": (
        NAN,
        {
            **rounds("fedavg", 0.01),
            **{"participation.selection": "heart.py:Cycle"},
            **{"participation.sampling_rate": 1 / HOSPITALS},
        },
    ),
}


def concurrent(strategy: str, quorum: int, rate: float, **more: Any) -> Settings:
    """All hospitals at work, each at its speed, until as many updates as FLamby's rounds have."""
    keys = {f"aggregation.{key}": value for key, value in more.items()}
    if strategy not in ("fedasync", "ringmaster"):
        keys["aggregation.quorum"] = quorum
    return {
        **{"experiment.versions": ROUNDS * HOSPITALS // quorum},
        **{"training.steps": 100, "training.learning_rate": rate},
        **{"aggregation.strategy": strategy, **keys},
    }


#: Tried for every asynchronous method: as many as FLamby's grid has rates, and four of its own.
RATES = (0.001, 0.003162, 0.01, 0.031623)
OWN: dict[str, tuple[int, str, tuple[float, ...], dict[str, Any]]] = {
    "fedbuff": (2, "server_learning_rate", (0.5, 1.0, 2.0, 4.0), {}),
    "fedasync": (1, "mixing", (0.2, 0.4, 0.6, 0.8), {}),
    "ca2fl": (2, "server_learning_rate", (0.5, 1.0, 2.0, 4.0), {}),
    "ringmaster": (1, "server_learning_rate", (0.25, 0.5, 1.0, 2.0), {"delay_threshold": 8}),
    "rennala": (2, "server_learning_rate", (0.5, 1.0, 2.0, 4.0), {}),
    "fadas": (2, "server_learning_rate", (0.01, 0.03, 0.1, 0.3), {}),
}


def grid(strategy: str) -> Iterator[tuple[str, Settings]]:
    """Sixteen settings of a strategy, each with its name."""
    quorum, key, values, more = OWN[strategy]
    for rate in RATES:
        for value in values:
            name = f"{strategy} {rate:g} {value:g}"
            yield name, concurrent(strategy, quorum, rate, **{key: value}, **more)


#: Chosen by ``--search``: the best mean accuracy over its seeds.
CHOSEN = {
    "FedBuff": "fedbuff 0.001 1",
    "FedAsync": "fedasync 0.001 0.6",
    "CA2FL": "ca2fl 0.003162 0.5",
    "Ringmaster": "ringmaster 0.001 0.5",
    "Rennala": "rennala 0.001 0.5",
    "FADAS": "fadas 0.003162 0.01",
}
#: FLamby's settings, as they are, when nobody waits for the slowest hospital.
UNCHANGED = {
    "FedAvg": concurrent("fedavg", 2, 0.001),
    "FedAdam": concurrent(
        "fedadam", 2, 0.01, server_learning_rate=0.01, server_beta_2=0.999, **_FLAMBY
    ),
}


def run(jobs: dict[str, Settings], seeds: tuple[int, ...], out: Path) -> dict[str, list[Any]]:
    """The runs of each job, one for each seed."""
    sweep = fl.sweep(COMMON, [*jobs.values()], seeds=seeds, out=out, code=HERE, slots=1)
    if sweep.failed:
        raise SystemExit(f"{sweep.failed}")
    done = {run.folder.name: run for run in sweep.runs}
    return {
        name: [done[cell.folder] for cell in sweep.plan.cells if cell.settings == settings]
        for name, settings in jobs.items()
    }


def measures(run: Any) -> tuple[float, float]:
    """Accuracy by FLamby's pooled test, and with every patient standardised by the hospital."""
    weights = run.weights()
    kernel, bias = (weights[f"trainable/{i}"].astype(float) for i in (0, 1))
    data = load("fed-heart")
    both = []
    for of_test, of_train in ((None, None), (data.owner_test, data.owner_train)):
        x = standardised(data.x_test, of_test, data.x_train, of_train)
        both.append(float(np.mean(((x @ kernel + bias)[:, 0] > 0) == data.y_test)))
    return both[0], both[1]


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/fed-heart"))
    options = parser.parse_args()
    settings = {name: of for strategy in OWN for name, of in grid(strategy)}
    if options.search:
        runs = run(settings, SEARCH_SEEDS, options.out / "search")
        means = {n: statistics.mean(measures(r)[0] for r in rs) for n, rs in runs.items()}
        for strategy in OWN:
            mine = [name for name, _ in grid(strategy)]
            for name in sorted(mine, key=means.__getitem__, reverse=True)[:3]:
                print(f"{name}: {means[name]:.4f}")
        return
    jobs = {name: of for name, (_, of) in FLAMBY.items()}
    jobs |= {f"{name}, asynchronous": of for name, of in UNCHANGED.items()}
    jobs |= {f"{name}": settings[chosen] for name, chosen in CHOSEN.items()}
    print("| method | FLamby's | pooled test | by hospital | virtual s |\n" + "| --- " * 5 + "|")
    for name, runs in run(jobs, SEEDS, options.out / "table").items():
        pooled, own = zip(*map(measures, runs), strict=True)
        published = FLAMBY.get(name, (NAN,))[0]
        theirs = "–" if math.isnan(published) else f"{published:.3f}"
        times = statistics.mean(r.summary["virtual_s"] for r in runs)
        print(f"| {name} | {theirs} | {spread([*pooled])} | {spread([*own])} | {times:.1f} |")


if __name__ == "__main__":
    main()
