"""A conductor of real processes: starts a federation, lets faults loose on it, and ends its run.

Members are the command line as a person starts it. Each connects through a proxy of its own, so
that its network can fail alone. What happens is drawn from the seed; when exactly is up to the
machine: after a fault the next one waits until the run has made a version (or ``RECOVERY_S`` are
over), so that a slow machine sees as many faults hit a living run as a fast one.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pika

from fluffle.broker.admin.node import Node
from fluffle.broker.topology import Topology
from fluffle.commands.summary import STOPPED
from tests.chaos.processes.faults import AGGREGATOR, BROKER, Fault
from tests.integration.processes import Started, version
from tests.proxy import Proxy

#: The next fault does not wait longer for a new version.
RECOVERY_S = 15.0
#: RabbitMQ 3.10.8 may forget quorum queues that are younger than 3 s when it is killed.
YOUNG_S = 10.0
#: Queues of a killed broker are waited for no longer.
QUEUES_BACK_S = 60.0
#: Workers leave a run that is over within this, unless it was over before they came.
LEAVES_S = 20.0
#: Anything else that has to happen, on a machine with other things to do.
PATIENCE_S = 240.0

#: Missed twice, a connection is dead: short, so that half-open ones and stops are noticed.
HEARTBEAT_S = 3


@dataclass
class Member:
    """One process of the federation, whichever incarnation of it."""

    name: str
    arguments: list[str]
    proxy: Proxy
    logs: list[Path] = field(default_factory=list)
    started: Started | None = None

    @property
    def output(self) -> str:
        """What all incarnations have said."""
        return "".join(log.read_text(errors="replace") for log in self.logs)


class Conductor:
    """Everybody of one run, and what was done to them."""

    def __init__(self, seed: int, folder: Path, node: Node) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.members: dict[str, Member] = {}
        self.node = node
        self._began = time.monotonic()
        self._undo: list[tuple[float, str, Callable[[], object]]] = []
        self._may_kill_broker_at = 0.0
        self.note(f"seed {seed}, in {folder}")

    # ---- members

    def add(self, name: str, *arguments: object) -> Member:
        """Start ``fluffle <arguments> --broker <through a proxy>``."""
        proxy = Proxy(self.node.url)
        where = ["--broker", f"{proxy.url}?heartbeat={HEARTBEAT_S}", "--connect-timeout", "300"]
        member = Member(name, [*map(str, arguments), *where], proxy)
        self.members[name] = member
        self.start(member)
        return member

    def start(self, member: Member, *more: object) -> Started:
        """Start a member (again)."""
        log = self.folder / f"{member.name}.{len(member.logs)}.log"
        member.logs.append(log)
        member.started = Started([*member.arguments, *map(str, more)], log)
        return member.started

    def close(self) -> None:
        """Nobody is left, whatever has happened."""
        for member in self.members.values():
            if member.started is not None:
                member.started.kill()
                member.started.wait()
            member.proxy.close()
        self.node.kill()

    # ---- the run

    def let_loose(self, faults: Sequence[Fault]) -> None:
        """All of these faults, one after the other and partly at once; then everything is well."""
        self.wait_for_version(1)
        self._may_kill_broker_at = time.monotonic() + YOUNG_S
        seen = self.version
        for number, fault in enumerate(faults, 1):
            self.let_pass(fault.after_s)
            if not fault.at_once:
                self._recover(seen)
            seen = self.version
            self._settle(fault.target)
            self._inject(number, fault)
        while self._undo:
            self._tick()
        self.note("all is well again")
        self.wait_for_version(self.version + 1)

    def wait_for_version(self, wanted: int) -> None:
        """Until the run has got that far. Raises: AssertionError where it does not."""
        deadline = time.monotonic() + PATIENCE_S
        while self.version < wanted:
            self._tick()
            assert time.monotonic() < deadline, f"version {wanted} was not made"

    def let_pass(self, seconds: float) -> None:
        """Some time, in which nobody leaves who should be there."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._tick()

    def kill(self, member: Member) -> None:
        """SIGKILL; it stays down until ``start``."""
        assert member.started is not None
        member.started.kill()
        member.started.wait()
        member.started = None
        self.note(f"{member.name} is down")

    def dead_letter(self, count: int) -> set[str]:
        """Kill the aggregator; the ids of ``count`` updates whose takers die until they are dead.

        What it would do itself if it died at each start with them in hand. It stays down.
        """
        aggregator, names = self.members[AGGREGATOR], Topology()
        already = self._ready(names.rejected.name)
        self.kill(aggregator)
        while not self._comes_true(lambda: self._ready(names.updates.name) >= count, RECOVERY_S):
            self.start(aggregator)  # nobody had a turn under way: another moment
            self.wait_for_version(self.version + 1)
            self.kill(aggregator)
        dead: set[str] = set()
        while not self._comes_true(lambda: self._ready(names.rejected.name) >= already + count, 0):
            taken = self._take_and_die(names.updates.name, count)
            dead = dead or taken
            if taken and not taken & dead:
                break  # they are on their way, and those behind them shall live
        self.note(f"dead-lettered: {sorted(dead)}")
        return dead

    def finish(self, after: int) -> int:
        """Let the run end ``after`` more versions; its last version. Nobody is left.

        The aggregator is told by being started again: when to stop is not part of what is learned.
        """
        aggregator = self.members[AGGREGATOR]
        assert aggregator.started is not None
        aggregator.started.kill(signal.SIGTERM)
        assert aggregator.started.wait() == STOPPED, aggregator.output
        last = self.version + after
        self.start(aggregator, "--set", f"experiment.versions={last}")
        self.note(f"the run may end with version {last}")
        for member in self.members.values():
            assert member.started is not None
            if member is not aggregator and not self._leaves(member.started):
                member.started.kill(signal.SIGTERM)
            code = member.started.wait()
            assert code == 0, f"{member.name} left with code {code}:\n{member.output[-2000:]}"
            member.started = None
        return last

    @property
    def version(self) -> int:
        """The newest version in the run folder; -1 if there is none."""
        return version(self.out)

    def note(self, text: str) -> None:
        """One line of history: said at once, and kept in the folder."""
        line = f"{time.monotonic() - self._began:7.1f} s  v{self.version:<4d} {text}"
        print(line, flush=True)
        with (self.folder / "history.txt").open("a") as file:
            file.write(line + "\n")

    # ---- inside

    def _leaves(self, started: Started) -> bool:
        """Whether it leaves by itself: one that has just come waits for the next run."""
        try:
            started.process.wait(LEAVES_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _inject(self, number: int, fault: Fault) -> None:
        self.note(f"{number}: {fault}")
        undo = self._hit_broker(fault) if fault.target == BROKER else self._hit_process(fault)
        if undo is not None:
            self._undo.append((time.monotonic() + fault.lasts_s, fault.target, undo))

    def _hit_broker(self, fault: Fault) -> Callable[[], object]:
        if fault.kind == "stop":
            self.node.signal(signal.SIGSTOP)
            return lambda: self.node.signal(signal.SIGCONT)
        if fault.kind == "alarm":
            self.node.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
            return lambda: self.node.ctl("set_vm_memory_high_watermark", "0.4")
        while time.monotonic() < self._may_kill_broker_at:
            self._tick()
        self.node.kill()
        return self._start_broker

    def _hit_process(self, fault: Fault) -> Callable[[], object] | None:
        member = self.members[fault.target]
        started, proxy = member.started, member.proxy
        assert started is not None
        match fault.kind:
            case "kill":
                self.kill(member)
                return lambda: self.start(member)
            case "stop":
                started.kill(signal.SIGSTOP)
                return lambda: started.kill(signal.SIGCONT)
            case "latency":
                proxy.delay(fault.latency_s)
                return lambda: proxy.delay(0)
            case "refuse":
                proxy.refuse(True)
                proxy.reset()
                return lambda: proxy.refuse(False)
            case "half-open":
                proxy.swallow()
            case "reset":
                proxy.reset()
        return None

    def _start_broker(self) -> None:
        self.node.start()
        self._may_kill_broker_at = time.monotonic() + YOUNG_S
        deadline = time.monotonic() + QUEUES_BACK_S
        for queue in Topology().shared:
            while not self._is_there(queue.name):
                assert time.monotonic() < deadline, (
                    f"{queue.name} did not come back within {QUEUES_BACK_S:.0f} s of the broker's "
                    "SIGKILL: a queue so young may be forgotten by RabbitMQ 3.10.8, kill later"
                )
                time.sleep(0.5)

    def _ready(self, queue: str) -> int:
        """How many messages wait in this queue."""
        with closing(pika.BlockingConnection(pika.URLParameters(self.node.url))) as connection:
            declared = connection.channel().queue_declare(queue, passive=True)
            return int(declared.method.message_count)

    def _take_and_die(self, queue: str, count: int) -> set[str]:
        """The ids of the first messages, which go back to their place as not acked."""
        with closing(pika.BlockingConnection(pika.URLParameters(self.node.url))) as connection:
            channel = connection.channel()
            got = [channel.basic_get(queue) for _ in range(count)]
            return {str(properties.message_id) for _, properties, _ in got if properties}

    def _comes_true(self, true: Callable[[], bool], within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while not true():
            if time.monotonic() > deadline:
                return False
            self._tick()
        return True

    def _is_there(self, queue: str) -> bool:
        try:
            connection = pika.BlockingConnection(pika.URLParameters(self.node.url))
            connection.channel().queue_declare(queue, passive=True)
            connection.close()
        except pika.exceptions.AMQPError:
            return False
        return True

    def _recover(self, seen: int) -> None:
        deadline = time.monotonic() + RECOVERY_S
        while self.version <= seen and time.monotonic() < deadline:
            self._tick()

    def _settle(self, target: str) -> None:
        """Until nothing is wrong with this one any more."""
        while any(name == target for _, name, _ in self._undo):
            self._tick()

    def _tick(self) -> None:
        """Undo what is due, and see to it that nobody has left who should be there."""
        due = [entry for entry in self._undo if entry[0] <= time.monotonic()]
        for entry in due:
            self._undo.remove(entry)
            entry[2]()
            self.note(f"   {entry[1]} is back")
        for member in self.members.values():
            code = member.started.process.poll() if member.started else None
            assert code is None, f"{member.name} left with code {code}:\n{member.output[-2000:]}"
        time.sleep(0.05)
