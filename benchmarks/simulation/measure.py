"""The virtual clock's price: simulated client updates per second against bare trainers in a loop.

The workload that simulators are compared with: experiments/small-clients.toml, a thousand clients
of sixty images, fifty at a time. And what more clients cost, in time and memory. README.md says
what to expect.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SMALL = str(ROOT / "experiments" / "small-clients.toml")

BARE = str(ROOT / "benchmarks" / "bare.py")

#: Asynchronous, so that no round's end leaves the slots idle.
ASYNC = (
    *("participation.mode=concurrent", "participation.concurrency=50"),
    *("aggregation.strategy=fedbuff", "aggregation.quorum=10"),
)


def bare(threads: int, updates: int, *lanes: str) -> float:
    command = [sys.executable, BARE, SMALL, str(threads), str(updates), *lanes]
    return float(_output(command).splitlines()[-1])


def simulated(threads: int, *settings: str) -> tuple[float, dict[str, Any]]:
    """Updates/s once a fifth of the run is done (the trainers are traced then), and the summary."""
    from fluffle.aggregator.ledger.writer import Ledger

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fluffle", "run", SMALL, "--clock", "virtual", "--json"]
        command += ["--slots", str(threads), "--out", f"{folder}/out"]
        for setting in ("evaluation.every_updates=0", *settings):
            command += ["--set", setting]
        summary = json.loads(_output(command).splitlines()[-1])
        ledger = Ledger(Path(folder) / "out")
        made = ledger.query("SELECT made_at, updates FROM versions ORDER BY version")
        ledger.close()
    steady = made[len(made) // 5 :]
    updates = sum(count for _, count in steady[1:])
    return updates / (steady[-1][0] - steady[0][0]), summary


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    threads, updates = options.threads, options.updates
    cases: dict[str, tuple[str, ...]] = {
        "rounds of 50": (f"experiment.versions={updates // 50}",),
        "50 in flight, K = 10": (*ASYNC, f"experiment.versions={updates // 10}"),
    }
    rates: dict[str, list[float]] = {name: [] for name in ("bare", *cases)}
    for _ in range(options.repeats):
        rates["bare"].append(bare(threads, updates))
        for name, settings in cases.items():
            rates[name].append(simulated(threads, *settings)[0])
        print({name: round(values[-1], 1) for name, values in rates.items()}, flush=True)
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"\n{os.cpu_count()} cores, {threads} threads, medians of {options.repeats}\n")
    print("| what | updates/s | of the bare loop |\n| --- | --- | --- |")
    for name, rate in median.items():
        print(f"| {name} | {rate:.0f} | {rate / median['bare']:.2f} |")
    print("\n| clients | in flight | updates/s | peak RSS |\n| --- | --- | --- | --- |")
    for clients, in_flight in ((100, 50), (1_000, 50), (10_000, 50), (10_000, 1_000)):
        rate, summary = simulated(
            threads,
            *ASYNC,
            *(f"task.clients={clients}", f"participation.concurrency={in_flight}"),
            *(f"experiment.versions={updates // 10}", "partition.examples_per_client=6"),
        )
        print(f"| {clients} | {in_flight} | {rate:.0f} | {summary['peak_rss_mb']:.0f} MB |")


if __name__ == "__main__":
    main()
