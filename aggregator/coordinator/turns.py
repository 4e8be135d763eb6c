"""Turns: who is in flight, what is overdue, and who is next.

A turn is overdue when it has been open for ``patience`` seconds; that may change while it is open.

concurrent: M turns are open at any time; a client has at most one. cohort: the clients of one
version are chosen together; only they count for it, and one that drops out or fails is replaced.
A cohort is a function of the seed and of the turn its version started with, so a restart issues
the very same turns again. A deterministic cohort's dropouts get their own turns again: another
client, or the same one with another turn's seed, would make other bytes.

Who is chosen is the selection's to say, among those who are there and not at work. Where they are
too few the turns wait: for the next who comes (``next_call``), or is done, or the next version.

With ``privacy.sampling`` a cohort is drawn by a secret instead, each client by itself; nobody is
replaced, and the version is made once all of them have answered, failed or are overdue::

    sampled(version) ──answered, failed, overdue──> one fewer open ──none open──> settled: step
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from fluffle.aggregator.coordinator.patience import Patience
from fluffle.aggregator.coordinator.selection import NEVER, Selector, sample_cohort
from fluffle.schemas import Assignment, ClientUpdate, Experiment, Plan, Run
from fluffle.schemas.messages import INITIALISE, assignment_id, state_name


class Turns:
    """The open assignments of a run, in the order in which they were issued."""

    def __init__(
        self,
        experiment: Experiment,
        run: Run,
        next_turn: int,
        contributed: Sequence[str],
        states: Mapping[str, str] | None = None,
        selector: Selector | None = None,
        sampling_key: bytes | None = None,
    ) -> None:
        """
        contributed: who is in the open buffer.
        states: where clients keep state, what each one's last folded update left it with.
        selector: by default that of the experiment, for whom everybody is always there.
        sampling_key: the secret that cohorts are sampled by, where they are.
        """
        #: The next turn to be issued.
        self.next = self.first = max(next_turn, INITIALISE + 1)
        #: How long a turn may take.
        self.patience = Patience(
            experiment.participation.assignment_deadline_s, experiment.concurrency
        )
        #: assignment id -> (assignment, when it was issued); the oldest first.
        self.open: dict[str, tuple[Assignment, float]] = {}
        self._experiment = experiment
        self._run = run
        #: Whether a client may be in a buffer only once.
        self._once = experiment.secure_aggregation is not None
        self._cohort_mode = experiment.participation.mode == "cohort"
        self._busy: set[str] = set()
        self._again: list[Assignment] = []
        #: cohort: client -> whether it has contributed, for the current version.
        self._cohort = dict.fromkeys(contributed, True)
        self._states = None if states is None else dict(states)
        self._selector = selector or Selector(experiment)
        self._in_buffer = set(contributed)
        self._sampling_key = sampling_key
        #: The version whose cohort has been sampled.
        self._sampled = -1
        #: Whether there is a turn that nobody is there for.
        self._waits = False

    @property
    def resume_from(self) -> int:
        """The turn to go on with after a restart: in cohort mode the whole cohort's first."""
        return self.first if self._cohort_mode else self.next

    def start_version(self) -> None:
        """A new version: in cohort mode all open turns were for the old one."""
        if self._cohort_mode:
            self.open.clear()
            self._busy.clear()
            self._cohort.clear()
            self._again.clear()
        self._in_buffer.clear()
        self._waits = False
        self.first = self.next

    def stop(self) -> None:
        """The run is over: nobody's answer is waited for."""
        self.open.clear()
        self._waits = False

    def initialise(self, plan: Plan, now: float) -> Assignment:
        """A turn that asks for the seeded weights of version 0."""
        return self._add(Assignment.to_initialise(self._run, plan), now)

    def issue(self, version: int, now: float) -> list[Assignment]:
        """Open as many turns as there is room for."""
        self._waits = False
        return self._issue_cohort(version, now) if self._cohort_mode else self._fill(version, now)

    def in_time(self, update: ClientUpdate, version: int) -> bool:
        """Whether this update may count: in cohort mode for its version only, and once."""
        if not self._cohort_mode:
            return True
        return update.base_version == version and self._cohort.get(update.client) is False

    def settled(self, version: int) -> bool:
        """Whether a cohort that was sampled for this version has nobody at work any more."""
        return self._sampled == version and not self.open

    def superseded(self, update: ClientUpdate) -> bool:
        """Whether it went on from a state that its client has gone on from since. A site's state
        is its own affair.
        """
        if self._states is None or not update.client.isdecimal():
            return False
        return update.after != self._states.get(update.client, "")

    def too_soon(self, update: ClientUpdate, version: int) -> bool:
        """Whether the selection forbids that its client counts in the next version already."""
        return not self._selector.admits(update.client, version + 1, self._in_buffer)

    def has_its_sum(self, update: ClientUpdate) -> bool:
        """Whether its client is in the open buffer, where a sum has each client once."""
        return self._once and update.client in self._in_buffer

    def contributed(self, update: ClientUpdate) -> None:
        """This update was folded."""
        self.close(update.update_id)
        self._in_buffer.add(update.client)
        if self._cohort_mode:
            self._cohort[update.client] = True
        if self._states is not None and update.client.isdecimal():
            name = state_name(update.after or "", update.turn, update.base_version)
            self._states[update.client] = name

    def close(self, update_id: str) -> bool:
        """Close a turn; False if it was not open."""
        entry = self.open.pop(update_id, None)
        if entry is None:
            return False
        self._busy.discard(entry[0].client)
        self._selector.freed(entry[0].client)
        return True

    def overdue(self, now: float) -> list[Assignment]:
        """Close the turns whose deadline has passed: dropouts."""
        dropped = []
        for assignment, issued in self.open.values():
            if issued + self.patience.seconds > now:
                break
            dropped.append(assignment)
        for assignment in dropped:
            self.close(assignment.assignment_id)
        if self._experiment.aggregation.deterministic:
            self._again += [a for a in dropped if a.kind == "train"]
        return dropped

    def next_call(self) -> float:
        """When the oldest open turn is overdue, or somebody comes for whom a turn waits."""
        first = next((issued for _, issued in self.open.values()), NEVER)
        overdue = first + self.patience.seconds
        return min(overdue, self._selector.next_arrival) if self._waits else overdue

    def somebody_comes(self, now: float) -> bool:
        """Whether there is somebody by now for whom a turn waits."""
        return self._waits and now >= self._selector.next_arrival

    def oldest_open(self) -> float:
        """The lowest turn that is open; infinity if none is."""
        return min((assignment.turn for assignment, _ in self.open.values()), default=float("inf"))

    def _fill(self, version: int, now: float) -> list[Assignment]:
        issued: list[Assignment] = []
        while len(self.open) < self._experiment.concurrency:
            taken = self._busy | self._in_buffer if self._once else self._busy
            chosen = self._choose(version, now, taken)
            if not chosen:
                self._waits = True
                break
            issued.append(self._open(chosen[0], version, now))
        return issued

    def _issue_cohort(self, version: int, now: float) -> list[Assignment]:
        if self._sampling_key is not None:
            return self._issue_sampled(self._sampling_key, version, now)
        wanted, issued = self._experiment.concurrency, []
        if self.next == self.first:
            for client in self._selector.choose(
                self.first, version, wanted, now, taken=(), in_buffer=set(), together=True
            ):
                if self._cohort.setdefault(client, False):
                    self.next += 1  # contributed before the restart: its turn is spent
                else:
                    issued.append(self._open(client, version, now))
        issued += [self._add(assignment, now) for assignment in self._again]
        self._again.clear()
        while sum(self._cohort.values()) + len(self.open) < wanted:
            chosen = self._choose(version, now, self._cohort) or self._absent(now)
            if not chosen:
                self._waits = True
                break
            self._cohort.setdefault(chosen[0], False)
            issued.append(self._open(chosen[0], version, now))
        return issued

    def _issue_sampled(self, key: bytes, version: int, now: float) -> list[Assignment]:
        """The turns of a cohort that nobody can compute, whoever is there. Nobody is replaced."""
        if self._sampled == version:
            return []
        self._sampled = version
        issued, rate = [], self._experiment.participation.sampling_rate
        for client in sample_cohort(key, version, self._experiment.task.clients, rate):
            if self._cohort.setdefault(client, False):
                self.next += 1  # contributed before the restart: its turn is spent
            else:
                issued.append(self._open(client, version, now))
        return issued

    def _choose(self, version: int, now: float, taken: Container[str]) -> list[str]:
        """One client for the next turn, or nobody."""
        return self._selector.choose(
            self.next, version, 1, now, taken=taken, in_buffer=self._in_buffer
        )

    def _absent(self, now: float) -> list[str]:
        """A member of the cohort that has dropped out or failed, and is there; or nobody."""
        absent = [c for c, done in self._cohort.items() if not done and c not in self._busy]
        self._selector.wait_for(absent, now)
        return [client for client in absent if self._selector.is_there(client, now)][:1]

    def _open(self, client: str, version: int, now: float) -> Assignment:
        assignment = Assignment(
            run=self._run,
            assignment_id=assignment_id(self._run.run_id, self.next, client),
            client=client,
            turn=self.next,
            version=version,
            exact_version=self._cohort_mode,
            after=None if self._states is None else self._states.get(client, ""),
        )
        self.next += 1
        return self._add(assignment, now)

    def _add(self, assignment: Assignment, now: float) -> Assignment:
        self.open[assignment.assignment_id] = (assignment, now)
        if assignment.kind == "train":
            self.patience.issued(assignment.assignment_id, now)
        self._busy.add(assignment.client)
        return assignment
