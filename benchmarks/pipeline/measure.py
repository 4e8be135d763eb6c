"""Whole runs of experiments/seed.toml against the bare trainer loop, on this machine, in one go.

Prints the table of README.md. Ratios are between medians of runs that were taken in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SEED = str(ROOT / "experiments" / "seed.toml")
FLUFFLE = [sys.executable, "-m", "fluffle"]
NO_EVALUATION = ["--set", "evaluation.every_updates=0"]

BARE = str(ROOT / "benchmarks" / "bare.py")


def bare(threads: int, updates: int) -> float:
    """Client updates per second of trainers that do nothing else, warm."""
    command = [sys.executable, BARE, SEED, str(threads), str(updates)]
    return float(_output(command).splitlines()[-1])


def run(*flags: str) -> dict[str, Any]:
    """The summary of a whole run."""
    with tempfile.TemporaryDirectory() as folder:
        output = _output([*FLUFFLE, "run", SEED, "--out", f"{folder}/out", "--json", *flags])
    return dict(json.loads(output.splitlines()[-1]))


def aggregator_alone(slots: int, *flags: str) -> dict[str, Any]:
    """The summary of ``fluffle aggregator`` in a process of its own, over RabbitMQ."""
    from fluffle.broker.admin.node import Node

    with tempfile.TemporaryDirectory() as folder, Node() as node:
        where = ["--broker", node.url]
        worker = subprocess.Popen(
            [*FLUFFLE, "worker", *where, "--slots", str(slots)], stdout=subprocess.DEVNULL
        )
        command = [*FLUFFLE, "aggregator", SEED, *where, "--out", f"{folder}/out", "--json"]
        output = _output([*command, *NO_EVALUATION, *flags])
        worker.wait(60)
    return dict(json.loads(output.splitlines()[-1]))


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--versions", type=int, default=100, help="100 is the whole experiment")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    threads, cut = options.threads, ["--set", f"experiment.versions={options.versions}"]
    updates = 3 * options.versions

    def updates_per_s(*flags: str) -> Callable[[], float]:
        return lambda: float(run(*flags, *NO_EVALUATION, *cut)["updates_per_s"])

    cases: dict[str, Callable[[], float]] = {
        "bare": lambda: bare(threads, updates),
        "embedded": updates_per_s("--slots", str(threads)),
        "local": updates_per_s("--broker", "local", "--workers", str(threads), "--slots", "1"),
    }
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.repeats):
        for name, measure in cases.items():
            rates[name].append(measure())
            print(f"{name}: {rates[name][-1]:.2f} updates/s", flush=True)
    whole = run("--slots", str(threads), *cut)
    alone = aggregator_alone(threads, *cut)

    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, {options.repeats} runs in turn\n")
    print("| what | measured | at least |")
    print("| --- | --- | --- |")
    print(f"| embedded run / bare loop | {median['embedded'] / median['bare']:.2f} | 0.85 |")
    print(f"| local RabbitMQ / embedded | {median['local'] / median['embedded']:.2f} | 0.8 |")
    print(f"| peak RSS, embedded, with evaluation | {whole['peak_rss_mb']:.0f} MB | ≤ 900 MB |")
    print(f"| peak RSS, fluffle aggregator | {alone['peak_rss_mb']:.0f} MB | ≤ 150 MB |")
    print(f"\nbare loop {_spread(rates['bare'])}, embedded {_spread(rates['embedded'])}, ", end="")
    print(f"local {_spread(rates['local'])} updates/s (median, least to most)")
    print(f"accuracy at the end {whole['accuracy']:.4f}, training {whole['train_fraction']:.1%}")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
