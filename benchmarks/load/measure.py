"""Many workers, a large model, a long run, and an aggregator that stands still. See README.md.

Each part starts its processes and a private RabbitMQ node, and prints a table of README.md. It ends
with an error where an update is lost or counted twice.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from federation import FLUFFLE, Federation
from watch import Watch, trend_of

from fluffle.broker.admin.node import Node
from fluffle.broker.topology import Topology

#: Versions until everybody has done everything once.
WARM = 40
#: RabbitMQ 4's default.
SMALL_LIMIT = 16 * 2**20

CROWD = """
[experiment]
name = "crowd"
versions = 1000000
[task]
name = "digits-lr"
clients = {clients}
[training]
epochs = 5
[participation]
pause_s = [0.0, {pause_s}]
[aggregation]
quorum = {quorum}
[evaluation]
every_updates = 0
"""

LARGE = """
[experiment]
name = "large"
versions = {versions}
[task]
name = "wide.py:Wide"
clients = {workers}
[training]
optimizer = "sgd"
learning_rate = 0.01
[aggregation]
quorum = {workers}
deadline_s = 600.0
[evaluation]
every_updates = 0
"""

SOAK = """
[experiment]
name = "soak"
versions = 1000000
[task]
name = "mnist-mlp"
clients = 100
[partition]
examples_per_client = 100
[evaluation]
every_updates = 100
examples = 1000
"""


@contextmanager
def federation(settings: Mapping[str, str] | None = None) -> Iterator[tuple[Federation, Watch]]:
    """A node, somebody who watches, and nobody else yet."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        node = stack.enter_context(Node(settings=settings))
        watch = stack.enter_context(Watch())
        yield Federation(folder, node, watch, stack), watch


def crowd(options: argparse.Namespace) -> None:
    """Connections by the hundred."""
    with federation() as (fed, watch):
        fed.lead(CROWD.format(clients=options.clients, quorum=options.quorum, pause_s=0.0))
        for i in range(options.processes):
            fed.crowd(f"crowd-{i}", options.workers // options.processes)
        sent = "SELECT COUNT(DISTINCT worker), COUNT(DISTINCT client) FROM updates WHERE turn > 0"
        fed.wait_for(1)
        fed.wait(lambda: fed.ask(sent)[0][0] == options.workers, "an update of each worker")
        first, cpu_s = fed.version, watch.cpu_s()
        connections, queues = fed.count("connections"), fed.count("queues")
        fed.wait_for(first + options.versions)
        last = fed.version
        spent = {name: after - cpu_s[name] for name, after in watch.cpu_s().items()}
        summary = fed.finish()
        ((workers, clients),) = fed.ask(sent)
        between = f"version IN ({first}, {last})"
        ((took,),) = fed.ask(
            f"SELECT MAX(elapsed_s) - MIN(elapsed_s) FROM versions WHERE {between}"
        )
        ((updates,),) = fed.ask(
            f"SELECT SUM(updates) FROM versions WHERE version > {first} AND version <= {last}"
        )
        fed.account()
    print("\n| what | measured |\n| --- | --- |")
    print(f"| workers, and clients that they trained | {workers}, {clients} |")
    print(f"| connections, queues | {connections}, {queues} |")
    print(f"| versions, updates | {summary['versions']}, {summary['updates_counted']} |")
    print(f"| updates/s once all workers had sent one | {updates / took:.1f} |")
    for name in ("node", "aggregator", "crowd-0"):
        series = watch.series[name]
        print(
            f"| {name}: peak RSS, descriptors, threads | {series.peak_mb:.0f} MB, "
            f"{max(series.fds)}, {max(series.threads)} |"
        )
        print(f"| {name}: processor time for an update | {spent[name] / updates * 1e3:.1f} ms |")


def large(options: argparse.Namespace) -> None:
    """A model as large as ResNet-18."""
    with federation() as (fed, watch):
        fed.lead(LARGE.format(**vars(options)))
        for i in range(options.processes):
            fed.crowd(f"crowd-{i}", options.workers // options.processes)
        fed.wait_for(1)
        prefetch = _prefetch(fed)
        summary = fed.end()
        made = [at for (at,) in fed.ask("SELECT elapsed_s FROM versions ORDER BY version")]
        ((size,),) = fed.ask("SELECT MAX(bytes_up) FROM updates WHERE turn > 0")
        fed.account()
    took = [later - earlier for earlier, later in pairwise(made[1:])]
    versions = summary["versions"]
    print("\n| what | measured |\n| --- | --- |")
    print(f"| an update's message | {size / 1e6:.1f} MB |")
    print(f"| seconds for a version | {_spread(took)} |")
    for what in ("up", "down"):
        print(
            f"| bytes {what} for a version | {summary[f'bytes_{what}'] / versions / 1e6:.0f} MB |"
        )
    print(f"| prefetch; as bytes | {prefetch}; {prefetch * size / 2**20:.0f} of 256 MiB |")
    print(f"| aggregator: peak RSS | {summary['peak_rss_mb']:.0f} MB |")
    print(f"| node: peak RSS | {watch.series['node'].peak_mb:.0f} MB |")
    print(f"| {options.workers // options.processes} workers in a process: peak RSS | "
          f"{watch.series['crowd-0'].peak_mb:.0f} MB |")  # fmt: skip
    for name in ("aggregator", "node"):
        print(f"| {name}: processor time for a version | "
              f"{watch.series[name].cpu_s[-1] / versions:.2f} s |")  # fmt: skip


def _prefetch(fed: Federation) -> int:
    """Of the aggregator's subscription to updates; it is away for a moment when it changes."""
    topology = Topology()
    while True:
        told = fed.node.ctl("list_consumers", "queue_name", "prefetch_count")
        for queue, prefetch in (line.split() for line in told.splitlines() if line):
            if queue == topology.updates.name:
                return int(prefetch)


def limit(options: argparse.Namespace) -> None:
    """The same model where RabbitMQ takes no message that large."""
    with federation({"max_message_size": str(SMALL_LIMIT)}) as (fed, _):
        fed.lead(LARGE.format(versions=1, workers=1))
        fed.crowd("crowd-0", 1)
        code = fed.members["aggregator"].wait()
        command = [*FLUFFLE, "doctor", "--broker", fed.node.url]
        environment = {**os.environ, "COLUMNS": "300"}
        doctor = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment
        )
        print(f"\nfluffle aggregator leaves with exit code {code}:\n")
        print(fed.log("aggregator").splitlines()[-1])
        print("\nfluffle doctor:\n")
        wanted = ("messages up to", "max_message_size")
        for line in doctor.stdout.splitlines():
            if any(text in line for text in wanted):
                print(line.strip())


def soak(options: argparse.Namespace) -> None:
    """Is memory flat?"""
    rng = random.Random(options.seed)
    with federation() as (fed, watch):
        fed.lead(SOAK)
        fed.evaluate()
        for i in range(3):
            fed.work(f"worker-{i}", 1)
        fed.wait_for(WARM)
        began_s, first, kills = watch.now_s, fed.version, 0
        pause_s = options.minutes * 60 / (options.kills + 1)
        while (passed_s := watch.now_s - began_s) < options.minutes * 60:
            if passed_s > (kills + rng.uniform(0.9, 1)) * pause_s and kills < options.kills:
                name = f"worker-{1 + kills % 2}"
                fed.kill(name)
                fed.members[name].wait()
                fed.work(name, 1)
                kills += 1
            time.sleep(1)
        ended_s, versions = watch.now_s, fed.version - first
        fed.finish()
        fed.account()
    print(f"\n{options.minutes:g} minutes, {versions} versions, {kills} kills\n")
    print("| process | second quarter | last quarter | growth | slope | peak | samples |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in ("node", "aggregator", "evaluator", "worker-0"):
        at_s, rss_mb = watch.series[name].between(began_s, ended_s)
        trend = trend_of(at_s, rss_mb)
        print(
            f"| {name} | {trend.second:.1f} MB | {trend.last:.1f} MB | {trend.grew:+.1%} | "
            f"{trend.per_minute:+.2f} MB/min | {trend.peak:.1f} MB | {len(at_s)} |"
        )
    if options.csv:
        with options.csv.open("w") as file:
            for name, series in watch.series.items():
                for at, rss in zip(series.at_s, series.rss_mb, strict=True):
                    print(f"{name},{at:.1f},{rss:.1f}", file=file)


def stopped(options: argparse.Namespace) -> None:
    """What workers do while the aggregator stands still and the queue is full."""
    rows = []
    with federation() as (fed, _):
        limits = json.dumps({"max-length-bytes": options.queue_bytes})
        fed.node.ctl("set_policy", "--apply-to", "queues", "small", "updates$", limits)
        fed.lead(CROWD.format(clients=1000, quorum=10, pause_s=0.5))
        names = [f"worker-{i}" for i in range(options.workers)]
        for name in names:
            fed.work(name, 4)
        fed.wait_for(10)
        for seconds in options.seconds:
            rows.append(_stop(fed, names, seconds))
            print(f"{seconds:g} s: {rows[-1]}", flush=True)
        # When the run is over nobody makes room any more, and workers wait until they are rid of
        # their last updates.
        fed.node.ctl("clear_policy", "small")
        fed.finish()
        fed.account()
        rejected = fed.ask("SELECT reason, SUM(times) FROM rejections GROUP BY reason")
    print("\n| what | " + " | ".join(f"{seconds:g} s" for seconds in options.seconds) + " |")
    print("| --- |" + " --- |" * len(rows))
    for what in rows[0]:
        print(f"| {what} | " + " | ".join(row[what] for row in rows) + " |")
    print(f"\nrejected: {dict(rejected) or 'none'}")


def _stop(fed: Federation, names: list[str], seconds: float) -> dict[str, str]:
    """Stop the aggregator for this long; the queue is soon full."""
    full, room = "the queue is full", "the queue takes messages again"

    def said(text: str) -> list[int]:
        return [fed.log(name).count(text) for name in names]

    def waiting() -> int:
        return sum(said(full)) - sum(said(room))

    before, earlier = fed.version, said(full)
    began = time.time()
    fed.kill("aggregator", signal.SIGSTOP)
    fed.wait(lambda: waiting() == len(names), "a full queue")
    full_s = time.time() - began
    time.sleep(max(0.0, seconds - full_s))
    made = fed.version
    lines = [after - before for after, before in zip(said(full), earlier, strict=True)]
    fed.kill("aggregator", signal.SIGCONT)
    woke = time.time()
    fed.wait_for(made + 1)
    next_s = time.time() - woke
    fed.wait(lambda: waiting() == 0, "room")
    fed.wait_for(fed.version + 20)
    waits = _waits(fed.journals, began, woke)
    assert made <= before + 1, "it did not stand still"
    return {
        "workers that said that the queue is full, after": f"{len(names)}, {full_s:.1f} s",
        "lines of it by a worker, at most": str(max(lines)),
        "updates confirmed while it stood still": str(waits.during),
        "updates that waited beyond it, and were confirmed": str(len(waits.over_s)),
        "the longest wait": f"{max(waits.over_s):.1f} s",
        "first version after it went on": f"{next_s:.1f} s",
    }


@dataclass(frozen=True)
class Waits:
    """What journals say of a span of time."""

    #: Updates that were sent and confirmed within it.
    during: int
    #: Seconds from sending to the confirm, of those that were sent within and confirmed after it.
    over_s: list[float]


def _waits(journals: Iterable[Path], began: float, ended: float) -> Waits:
    during, over_s = 0, []
    for journal in journals:
        sent: dict[str, float] = {}
        for line in map(json.loads, journal.read_text().splitlines()):
            if line["what"] == "sending":
                sent[line["update_id"]] = line["at"]
            elif began <= sent[line["update_id"]] <= ended:
                if line["at"] <= ended:
                    during += 1
                else:
                    over_s.append(line["at"] - sent[line["update_id"]])
    return Waits(during, over_s)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


PARTS = {"crowd": crowd, "large": large, "limit": limit, "stopped": stopped, "soak": soak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part")
    part = parts.add_parser("crowd", help=crowd.__doc__)
    part.add_argument("--workers", type=int, default=200)
    part.add_argument("--processes", type=int, default=4, help="that the workers are in")
    part.add_argument("--clients", type=int, default=1000)
    part.add_argument("--versions", type=int, default=300)
    part.add_argument("--quorum", type=int, default=10)
    part = parts.add_parser("large", help=large.__doc__)
    part.add_argument("--workers", type=int, default=10)
    part.add_argument("--processes", type=int, default=2)
    part.add_argument("--versions", type=int, default=12)
    parts.add_parser("limit", help=limit.__doc__)
    part = parts.add_parser("stopped", help=stopped.__doc__)
    part.add_argument("--workers", type=int, default=4)
    part.add_argument("--seconds", type=float, nargs="+", default=[30.0, 120.0])
    part.add_argument("--queue-bytes", type=int, default=300_000, help="of the queue")
    part = parts.add_parser("soak", help=soak.__doc__)
    part.add_argument("--minutes", type=float, default=10.0)
    part.add_argument("--kills", type=int, default=5)
    part.add_argument("--seed", type=int, default=1)
    part.add_argument("--csv", type=Path, help="write all samples there")
    chosen = parser.parse_args().part
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True
    )
    for name in [chosen] if chosen else PARTS:
        arguments = sys.argv[1:] if chosen else [name]
        print(f"\n== {name}", flush=True)
        PARTS[name](parser.parse_args(arguments))


if __name__ == "__main__":
    main()
