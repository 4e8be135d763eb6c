"""Explores seeded schedules: ``make chaos N=100000``, or one of them: ``make chaos SEED=17``.

    python -m tests.chaos.model.explore [--count N] [--first SEED] [--processes P] [--seed SEED]

Exit code 1 where an invariant was broken; of the first such seed the fewest faults that break it
are printed, with all that happened.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

from tests.chaos.model.faults import Fault, draw
from tests.chaos.model.minimise import minimise
from tests.chaos.model.world import World

#: Seeds that one process takes at a time.
_CHUNK = 100


@dataclass
class Findings:
    """What some schedules showed."""

    schedules: int = 0
    #: Seed -> what was wrong.
    broken: dict[int, list[str]] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    #: Faults that struck, by kind, and points at which a process crashed.
    faults: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    #: Deterministic cohorts whose bytes were compared with the undisturbed run's.
    compared: int = 0

    def add(self, other: Findings) -> None:
        """Take in what other schedules showed."""
        self.schedules += other.schedules
        self.compared += other.compared
        self.broken |= other.broken
        self.outcomes += other.outcomes
        self.faults += other.faults
        self.crashes += other.crashes


def explore(seeds: Sequence[int]) -> Findings:
    """Run the schedules of these seeds, one after the other."""
    findings = Findings()
    for seed in seeds:
        world = World(seed)
        violations = world.run()
        if not violations and world.comparable:
            findings.compared += 1
            violations = undisturbed_differs(world, seed)
        findings.schedules += 1
        findings.outcomes[str(world.outcome)] += 1
        findings.faults += world.struck
        findings.crashes += world.crashes
        if violations:
            findings.broken[seed] = violations
    return findings


def undisturbed_differs(world: World, seed: int) -> list[str]:
    """A deterministic cohort gives the same bytes through any fault."""
    undisturbed = World(seed, ())
    undisturbed.run()
    ours, theirs = world.watch.versions, undisturbed.watch.versions
    if world.setting.experiment.experiment.target_accuracy is not None:  # how far it goes differs
        least = min(len(ours), len(theirs))
        ours, theirs = ours[:least], theirs[:least]
    if ours == theirs:
        return []
    return ["a deterministic cohort gave other bytes than without faults"]


def explore_all(first: int, count: int, processes: int) -> Iterator[Findings]:
    """The same in several processes: chunk by chunk, as they are done."""
    chunks = [
        range(at, min(at + _CHUNK, first + count)) for at in range(first, first + count, _CHUNK)
    ]
    if processes == 1:
        yield from map(explore, chunks)
        return
    with ProcessPoolExecutor(processes) as pool:
        for done in as_completed([pool.submit(explore, chunk) for chunk in chunks]):
            yield done.result()


def broken(seed: int, faults: Sequence[Fault]) -> list[str]:
    """What these faults break in the run of this seed."""
    world = World(seed, faults)
    violations = world.run()
    if not violations and world.comparable:
        violations = undisturbed_differs(world, seed)
    return violations


def explain(seed: int) -> str:
    """The fewest faults that break the run of this seed, and what happened."""
    faults = draw(seed)
    if broken(seed, faults):
        faults = minimise(faults, lambda fewer: bool(broken(seed, fewer)))
    world = World(seed, faults, trace=True)
    world.run()
    found = broken(seed, faults) or ["nothing is wrong"]
    return "\n".join(
        [
            f"seed {seed}: {world.setting}",
            *world.history,
            f"seed {seed} with {len(faults)} faults:",
            *(f"  {fault}" for fault in faults),
            *(f"  -> {text}" for text in found),
        ]
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Explores seeded schedules of faults.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="replay this one and say all that happens")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        print(explain(arguments.seed))
        return int(bool(explore([arguments.seed]).broken))
    started = time.monotonic()
    total = Findings()
    for findings in explore_all(arguments.first, arguments.count, arguments.processes):
        total.add(findings)
        for seed, violations in findings.broken.items():
            print(f"\rmake chaos SEED={seed}: {violations[0]}", file=sys.stderr)
        rate = total.schedules / (time.monotonic() - started)
        print(
            f"\r{total.schedules} schedules, {len(total.broken)} broken, {rate:.0f}/s",
            end="",
            file=sys.stderr,
        )
    print(file=sys.stderr)
    print(summary(total, time.monotonic() - started))
    return int(bool(total.broken))


def summary(total: Findings, seconds: float) -> str:
    """What was explored and found."""
    lines = [
        f"{total.schedules} schedules in {seconds:.0f} s, {sum(total.faults.values())} faults",
        f"ends: {dict(total.outcomes)}",
        f"faults: {dict(total.faults.most_common())}",
        f"{total.compared} deterministic cohorts compared with their undisturbed runs",
        f"{len(total.broken)} schedules broke an invariant",
    ]
    if total.broken:
        lines.append(explain(min(total.broken)))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
