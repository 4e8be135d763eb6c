"""Accuracy by bytes sent: what each way of compressing updates saves, and what it costs.

    python benchmarks/compression/measure.py             # the table and the figure
    python benchmarks/compression/measure.py --search    # the learning rates that were tried

README.md says what to expect.
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

from sweep import Measured, Tables, merged, reached, save, sweep

TARGET = 0.9
SEEDS = (1, 2, 3)
SEARCH_SEED = 100
LEARNING_RATES = (0.03, 0.1, 0.3)
#: The others take the learning rate of the first.
SEARCHED = ("float32", "1 bit", "top 1 %")

COMMON: Tables = {
    "experiment": {"versions": 100},
    "task": {"name": "mnist-mlp", "clients": 100},
    # Concentration 0.5 for each of ten balanced classes.
    "partition": {"kind": "dirichlet", "alpha": 5.0, "examples_per_client": 100},
    "training": {"epochs": 1, "batch_size": 10, "optimizer": "sgd", "learning_rate": 0.3},
    "participation": {"concurrency": 20},
    "aggregation": {"strategy": "fedbuff", "quorum": 10, "deadline_s": 10_000.0},
    "evaluation": {"every_updates": 50, "examples": 5_000},
    "devices": {"delay": "half_normal", "delay_s": 0.798, "delay_of": "turn"},
}


def top(share: float, feedback: bool = True, kind: str = "top_k") -> dict[str, Any]:
    return {"kind": kind, "share": share, "error_feedback": feedback}


METHODS: dict[str, list[dict[str, Any]] | None] = {
    "float32": None,
    "bfloat16": [{"kind": "cast", "dtype": "bfloat16"}],
    "8 bits": [{"kind": "quantise", "bits": 8}],
    "4 bits": [{"kind": "quantise", "bits": 4}],
    "2 bits": [{"kind": "quantise", "bits": 2}],
    "1 bit": [{"kind": "quantise", "bits": 1}],
    "top 10 %": [top(0.1)],
    "top 1 %": [top(0.01)],
    "top 1 %, no memory": [top(0.01, feedback=False)],
    "random 10 %": [top(0.1, kind="random_k")],
    "random 10 %, no memory": [top(0.1, feedback=False, kind="random_k")],
    "top 1 %, 8 bits": [top(0.01), {"kind": "quantise", "bits": 8}],
}


def tables(name: str, seed: int) -> Tables:
    steps = {"update": METHODS[name]} if METHODS[name] else {}
    return merged(COMMON, {"experiment": {"seed": seed}}, steps)


def draw(runs: dict[str, list[list[Measured]]], path: Path) -> None:
    """Accuracy against bytes sent, the mean over seeds at each evaluation."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    styles = itertools.cycle(["-", "--", ":"])
    for (name, of), style in zip(runs.items(), styles, strict=False):
        length = min(map(len, of))
        sent = [statistics.mean(run[i].bytes_up for run in of) / 1e6 for i in range(1, length)]
        accuracy = [statistics.mean(run[i].accuracy for run in of) for i in range(1, length)]
        axis.plot(sent, [100 * a for a in accuracy], style, label=name)
    axis.axhline(100 * TARGET, color="0.6", linewidth=0.8)
    axis.set(xscale="log", xlabel="sent by all clients (MB)", ylabel="accuracy (%)")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
    save(figure, path)


def row(name: str, of: list[list[Measured]], plain_mb: float | None) -> tuple[str, float | None]:
    """A line of the table, and the MB to the target."""
    per_update = statistics.mean(run[-1].bytes_up / run[-1].updates for run in of) / 1e3
    last = [100 * statistics.mean(m.accuracy for m in run[-3:]) for run in of]
    spread = f"{statistics.mean(last):.1f} ± {statistics.stdev(last):.1f}" if of[1:] else "–"
    there = [reached(run, TARGET) for run in of]
    met = [m for m in there if m is not None]
    if len(met) < len(there):
        some = f"{len(met)} of {len(of)} runs"
        return f"| {name} | {per_update:.1f} | {spread} | {some} | – | – |", None
    updates = statistics.mean(m.updates for m in met)
    mb = statistics.mean(m.bytes_up for m in met) / 1e6
    ratio = f"{(plain_mb or mb) / mb:.1f}"
    return f"| {name} | {per_update:.1f} | {spread} | {updates:.0f} | {mb:.2f} | {ratio} |", mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    started = time.perf_counter()
    if options.search:
        grid = {
            (name, rate): merged(tables(name, SEARCH_SEED), {"training": {"learning_rate": rate}})
            for name, rate in itertools.product(SEARCHED, LEARNING_RATES)
        }
        for (name, rate), run in sweep(grid.items()):
            met = reached(run, TARGET)
            updates = met.updates if met else None
            print(
                f"{name}, {rate}: {updates} updates, {run[-1].accuracy:.3f} at the end", flush=True
            )
        return
    jobs = {(name, seed): tables(name, seed) for name in METHODS for seed in SEEDS[: options.seeds]}
    runs: dict[str, list[list[Measured]]] = {name: [] for name in METHODS}
    for (name, _), run in sorted(sweep(jobs.items()), key=lambda item: str(item[0])):
        runs[name].append(run)
    text = {name: [[vars(m) for m in run] for run in of] for name, of in runs.items()}
    options.out.write_text(json.dumps(text) + "\n")
    draw(runs, options.out.with_suffix(".svg"))
    print("| what | kB an update | accuracy (%) | updates to 90 % | MB to 90 % | × less |")
    print("| --- | --- | --- | --- | --- | --- |")
    plain = row("float32", runs["float32"], None)[1]
    for name, of in runs.items():
        print(row(name, of, plain)[0])
    print(f"\n{len(jobs)} runs in {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
