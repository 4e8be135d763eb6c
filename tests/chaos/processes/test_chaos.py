"""Whatever happens to real processes on a real RabbitMQ: nothing is lost, nobody counted twice.

``make chaos-processes FAULTS=100 SEED=7`` for more of it, or for the same again.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from fluffle.aggregator.prefetch import SUSPICIOUS
from fluffle.broker.admin.node import Node
from tests.chaos import sceptic
from tests.chaos.processes.balance import Balance, balance_of
from tests.chaos.processes.conductor import Conductor
from tests.chaos.processes.faults import AGGREGATOR, WORKERS, draw
from tests.integration.processes import Start, verified

pytestmark = [pytest.mark.rabbitmq, pytest.mark.tensorflow, pytest.mark.slow]

FAULTS = int(os.environ.get("FLUFFLE_CHAOS_FAULTS", "20"))
SEED = int(os.environ.get("FLUFFLE_CHAOS_SEED", "1"))
only_nightly = pytest.mark.skipif(
    "FLUFFLE_CHAOS_FAULTS" not in os.environ, reason="make chaos-processes runs this"
)

#: Turns of a second or so, most of it waiting; a version needs all six of them. It goes on until
#: it is told after which version to stop.
COMMON = """
[experiment]
name = "chaos"
versions = 1000000
[task]
name = "digits-lr"
clients = 6
[evaluation]
every_updates = 0
[devices]
delay = "exponential"
delay_s = 0.3
"""
#: Turns are lost here too, and have to come again as they were.
COHORT = """
[participation]
mode = "cohort"
assignment_deadline_s = 8
pause_s = [0.0, 0.5]
[aggregation]
strategy = "fedavg"
keep_updates = true
deterministic = true
on_deadline = "extend"
deadline_s = 3
hold_s = 2
"""
#: What clients keep between their turns, in a folder that both workers share, belongs to the update
#: that was counted last, or the bytes differ.
SCAFFOLD = (
    COHORT.replace('"fedavg"', '"scaffold"')
    + """
[training]
optimizer = "sgd"
learning_rate = 0.05
"""
)
#: Stale and late updates are rejected, and turns are lost: every disposition there is.
CONCURRENT = """
[participation]
mode = "concurrent"
assignment_deadline_s = 8
pause_s = [0.0, 0.5]
[aggregation]
strategy = "fedbuff"
keep_updates = true
quorum = 3
deadline_s = 3
max_staleness = 2
hold_s = 2
"""


@contextmanager
def federation(seed: int, experiment: str) -> Iterator[Conductor]:
    """An aggregator and two workers at work. If all is well at the end the folder goes."""
    folder = Path(tempfile.mkdtemp(prefix="fluffle-chaos-"))
    file = folder / "experiment.toml"
    file.write_text(experiment)
    node = Node(folder / "node")
    node.start()
    conductor = Conductor(seed, folder, node)
    try:
        conductor.add(AGGREGATOR, "aggregator", file, "--out", conductor.out)
        for name in WORKERS:
            journal = folder / f"{name}.jsonl"
            conductor.add(
                *(name, "worker", "--name", name, "--slots", 2, "--simulate-devices"),
                *("--journal", journal, "--state", folder / "state", "--parent", os.getpid()),
            )
        yield conductor
    except BaseException:
        conductor.note("it failed: the folder is kept")
        raise
    finally:
        conductor.close()
    shutil.rmtree(folder)


def versions_of(out: Path) -> list[tuple[int, str]]:
    """Every version with the hash of its weights."""
    with closing(sqlite3.connect(out / "ledger.sqlite")) as db:
        return db.execute(
            "SELECT version, weights_sha256 FROM versions ORDER BY version"
        ).fetchall()


def undisturbed(start: Start, chaos: Conductor, last: int) -> list[tuple[int, str]]:
    """What the versions of this run are where nothing happens."""
    quiet = chaos.folder / "quiet"
    alone = start(
        *("run", chaos.folder / "experiment.toml", "--clock", "virtual"),
        *("--out", quiet, "--set", f"experiment.versions={last}"),
    )
    assert alone.wait() == 0, alone.output
    return versions_of(quiet)


def counted(out: Path, clients: set[str]) -> Counter[str]:
    """How many updates of each of these clients are in a version."""
    with closing(sqlite3.connect(out / "ledger.sqlite")) as db:
        rows = db.execute("SELECT client FROM updates WHERE disposition = 'counted' AND turn > 0")
        return Counter(client for (client,) in rows if client in clients)


def check(start: Start, chaos: Conductor, last: int, *, cohort: bool) -> Balance:
    """The ledger holds, versions are contiguous, and every confirmed update is accounted for.

    Where the order is certain every version has the bytes of a run that was left alone.
    """
    where = ("--replay", "--broker", chaos.node.url)
    chaos.note(verified(start, chaos.out, *where).strip())
    journals = [chaos.folder / f"{name}.jsonl" for name in WORKERS]
    queued = sceptic.in_queues(chaos.node.url, "fluffle")
    assert sceptic.doubts(chaos.out, journals, queued, cohort) == []
    balance = balance_of(chaos.out, [chaos.folder / f"{w}.jsonl" for w in WORKERS], chaos.node)
    chaos.note(str(balance))
    assert balance.problems(one_base=cohort) == []
    made = versions_of(chaos.out)
    assert [version for version, _ in made] == list(range(last + 1))
    if cohort:
        assert made == undisturbed(start, chaos, last)
    return balance


@pytest.mark.timeout(600 + 30 * FAULTS)
@pytest.mark.parametrize(
    ("experiment", "count"),
    [
        (COMMON + COHORT, FAULTS),
        (COMMON + CONCURRENT, FAULTS // 4),
        pytest.param(COMMON + SCAFFOLD, FAULTS, marks=only_nightly),
    ],
    ids=["cohort", "concurrent", "scaffold"],
)
def test_a_run_survives_whatever_is_done_to_it(start: Start, experiment: str, count: int) -> None:
    with federation(SEED, experiment) as chaos:
        # Given a run to which all this has happened
        chaos.let_loose(draw(SEED, count))
        # When it may come to its end
        last = chaos.finish(after=3)
        # Then nothing is lost, counted twice or changed
        check(start, chaos, last, cohort=CONCURRENT not in experiment)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "experiment", [COMMON + COHORT, COMMON + CONCURRENT], ids=["cohort", "concurrent"]
)
def test_updates_that_nobody_survives_are_set_aside_and_accounted_for(
    start: Start, experiment: str
) -> None:
    with federation(SEED, experiment) as chaos:
        # Given a run whose aggregator is killed, with updates on their way
        chaos.wait_for_version(1)
        # When it dies at each start with the same two in hand, until the broker gives them up
        dead = chaos.dead_letter(2)
        clients = {update_id.rsplit(":", 1)[1] for update_id in dead}
        before = counted(chaos.out, clients)
        # Then the run goes on, and their clients take part again
        chaos.start(chaos.members[AGGREGATOR])
        while len(counted(chaos.out, clients) - before) < len(clients):
            chaos.wait_for_version(chaos.version + 1)
        last = chaos.finish(after=1)
        # And the balance finds those two where the broker has put them, and all others
        # (a cohort has trained them once more)
        balance = check(start, chaos, last, cohort=CONCURRENT not in experiment)
        assert balance.dead == dead <= balance.confirmed.keys()


@pytest.mark.timeout(600)
def test_an_aggregator_that_is_cut_off_again_and_again_is_not_held_up_by_what_it_holds(
    start: Start,
) -> None:
    # Given an aggregator that may hold updates for long, and waits for those of a stopped worker
    patient = (COMMON + COHORT).replace("hold_s = 2", "hold_s = 3600")
    with federation(SEED, patient) as chaos:
        chaos.wait_for_version(1)
        stopped = chaos.members[WORKERS[1]].started
        assert stopped is not None
        stopped.kill(signal.SIGSTOP)
        # When its connection is cut so often that the broker's count of deliveries is suspicious
        for _ in range(2 * SUSPICIOUS):
            chaos.let_pass(1.0)
            chaos.members[AGGREGATOR].proxy.reset()
        stopped.kill(signal.SIGCONT)
        # Then it goes on, and none of what it held is given up by the broker
        chaos.wait_for_version(chaos.version + 2)
        last = chaos.finish(after=1)
        assert check(start, chaos, last, cohort=True).dead == set()
