"""Bare trainers in a loop: what the machine can do if it does nothing but train.

    python benchmarks/bare.py FILE THREADS UPDATES

Prints client updates per second of an experiment's clients, one warm trainer for each thread.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from fluffle.worker.training.runtime import configure


def main() -> None:
    file, threads, updates = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    configure(threads)
    from fluffle.experiment_file import load_experiment
    from fluffle.schemas import Plan
    from fluffle.worker.training.trainer import Trainer

    plan = Plan.of(load_experiment(file), "delta")
    trainers = [Trainer(plan) for _ in range(threads)]
    weights = trainers[0].initial()

    def loop(trainer: Trainer, first: int, count: int) -> None:
        for turn in range(first, count, threads):
            trainer.train(weights, str(turn % plan.task.clients), turn)

    def rate(count: int) -> float:
        loops = [
            threading.Thread(target=loop, args=(trainer, i, count))
            for i, trainer in enumerate(trainers)
        ]
        started = time.perf_counter()
        for thread in loops:
            thread.start()
        for thread in loops:
            thread.join()
        return count / (time.perf_counter() - started)

    rate(max(threads, updates // 10))  # traces the trainers
    print(rate(updates))


if __name__ == "__main__":
    main()
