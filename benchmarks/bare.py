"""Bare trainers in a loop: what the machine can do if it does nothing but train.

    python benchmarks/bare.py FILE THREADS UPDATES [LANES]

Prints client updates per second of an experiment's clients, one warm trainer for each thread; with
LANES by the JAX engine, so many clients in a step.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fluffle.worker.training.runtime import configure

#: (number of the thread, how many updates it makes)
Loop = Callable[[int, int], None]


def main() -> None:
    file, threads, updates = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    lanes = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    configure(threads, "jax" if lanes else "tensorflow")
    from fluffle.experiment_file import load_experiment
    from fluffle.schemas import Plan

    told = ["training.engine=jax", f"training.lanes={lanes}"] if lanes else []
    plan = Plan.of(load_experiment(file, told), "delta")
    loop = on_jax(plan, threads, lanes) if lanes else on_tensorflow(plan, threads)

    def rate(count: int) -> float:
        loops = [threading.Thread(target=loop, args=(i, count)) for i in range(threads)]
        started = time.perf_counter()
        for thread in loops:
            thread.start()
        for thread in loops:
            thread.join()
        return count / (time.perf_counter() - started)

    rate(max(threads * max(lanes, 1), updates // 10))  # traces the trainers
    print(rate(updates))


def on_tensorflow(plan, threads: int) -> Loop:  # type: ignore[no-untyped-def]
    """A trainer for each thread."""
    from fluffle.worker.training.trainer import Trainer

    trainers = [Trainer(plan) for _ in range(threads)]
    weights = trainers[0].initial()

    def loop(first: int, count: int) -> None:
        for turn in range(first, count, threads):
            trainers[first].train(weights, str(turn % plan.task.clients), turn)

    return loop


def on_jax(plan, threads: int, lanes: int) -> Loop:  # type: ignore[no-untyped-def]
    """One trainer, whose steps the threads share out."""
    from fluffle.worker.training.lanes.trainer import JaxTrainer
    from fluffle.worker.training.trained import Job

    trainer = JaxTrainer(plan)
    weights = trainer.initial()

    def loop(first: int, count: int) -> None:
        for start in range(first * lanes, count, threads * lanes):
            turns = range(start, start + lanes)
            jobs = [Job(str(turn % plan.task.clients), turn) for turn in turns]
            trainer.train_many(weights, jobs, [None] * lanes)

    return loop


if __name__ == "__main__":
    main()
