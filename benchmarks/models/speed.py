"""Client updates per second of each model against a plain ``fit`` loop, its bytes and memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

CLIENTS = 2
SIDES = ("fit", "trainer")


def plan_of(name: str) -> Any:
    """The plan of a model's trainings, whose task is registered."""
    from zoo import KINDS, task_of

    from fluffle.schemas import Experiment, Plan
    from fluffle.worker.tasks.registry import TASKS

    kind = KINDS[name]
    task = "benchmark-" + "".join(c for c in name.lower() if c.isalnum())
    TASKS[task] = task_of(kind, CLIENTS)
    tables: dict[str, Any] = {
        "task": {"name": task, "clients": CLIENTS},
        "training": {"epochs": 1, "batch_size": kind.batch, "optimizer": "adam"},
    }
    return Plan.of(Experiment.model_validate(tables), "delta")


def fit_loop(name: str) -> Callable[[int], int]:
    """As a person writes it: one model; each client begins with the global weights."""
    import keras
    from zoo import KINDS

    from fluffle.worker.tasks.registry import load_task

    plan, kind = plan_of(name), KINDS[name]
    task = load_task(plan)
    model: Any = task.model()
    model.compile(optimizer="adam", loss=task.loss, metrics=["accuracy"])
    given, base = task.dataset(), model.get_weights()

    def part(client: int) -> Any:
        own = slice(client * kind.examples, (client + 1) * kind.examples)
        return keras.tree.map_structure(lambda array: array[own], given)

    parts = [part(client) for client in range(CLIENTS)]

    def update(turn: int) -> int:
        x, y = parts[turn % CLIENTS]
        model.set_weights(base)
        model.fit(x, y, batch_size=kind.batch, verbose=0)
        return len(model.get_weights())

    return update


def trained(name: str) -> Callable[[int], int]:
    """An update as a worker makes it, and the bytes that it takes."""
    from fluffle.schemas import ClientUpdate, Run
    from fluffle.schemas.codec import encode
    from fluffle.worker.services.answers import delta
    from fluffle.worker.training.per_plan import make_trainer

    trainer = make_trainer(plan_of(name))
    base, run = trainer.initial(), Run(run_id="run", run_started=0, epoch=1)

    def update(turn: int) -> int:
        local = trainer.train(base, str(turn % CLIENTS), turn)
        sent = ClientUpdate(
            run=run,
            update_id=f"run:{turn + 1}:0",
            client=str(turn % CLIENTS),
            turn=turn + 1,
            base_version=0,
            worker="worker",
            sends="delta",
            examples=local.examples,
            tensors=delta(local.tensors, base),
        )
        return len(encode(sent))

    return update


def serve(side: str, name: str, folder: str, pipe: Connection) -> None:
    """In the side's process: warm up, then one update for each request."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    sys.path.insert(0, folder)
    if side == "trainer":
        from fluffle.worker.training.runtime import configure

        configure(1)
    empty = _peak_mb()
    started = time.perf_counter()
    update = (trained if side == "trainer" else fit_loop)(name)
    size = update(0)
    pipe.send(time.perf_counter() - started)
    update(1)
    turn = 2
    while pipe.recv() == "go":
        started, cpu = time.perf_counter(), time.process_time()
        update(turn)
        pipe.send((time.perf_counter() - started, time.process_time() - cpu))
        turn += 1
    pipe.send((size, _peak_mb() - empty))


def _peak_mb() -> float:
    """Of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def row(name: str, rounds: int) -> str:
    """A line of the table: all sides, in turns."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["keras"])  # imported once; nobody has used it before the fork
    pipes: dict[str, Connection] = {}
    first: dict[str, float] = {}
    folder = os.path.dirname(os.path.abspath(__file__))
    for side in SIDES:
        pipes[side], theirs = context.Pipe()
        context.Process(target=serve, args=(side, name, folder, theirs), daemon=True).start()
        theirs.close()  # so that a side that fails is noticed
        first[side] = pipes[side].recv()
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, pipe in pipes.items():
            pipe.send("go")
            times[side].append(pipe.recv())
    ends: dict[str, tuple[int, float]] = {}
    for side, pipe in pipes.items():
        pipe.send("stop")
        ends[side] = pipe.recv()

    def ratios(which: int) -> list[float]:
        pairs = zip(times["fit"], times["trainer"], strict=True)
        return [theirs[which] / ours[which] for theirs, ours in pairs]

    wall, cpu = ratios(0), ratios(1)
    rates = {side: 1 / statistics.median(wall for wall, _ in of) for side, of in times.items()}
    size, memory = ends["trainer"]
    return (
        f"| {name} | {rates['fit']:.2f} | {rates['trainer']:.2f} | {statistics.median(wall):.1f} "
        f"({min(wall):.1f} to {max(wall):.1f}) | {statistics.median(cpu):.1f} | {size / 1e6:.2f} | "
        f"{memory:.0f} | {ends['fit'][1]:.0f} | {first['trainer']:.0f} | {first['fit']:.0f} |"
    )


def measure(names: Iterable[str], rounds: int) -> None:
    """Print the table, a line for each model."""
    print(
        "| model | fit, updates/s | trainer, updates/s | ratio | of CPU time | MB an update | "
        "peak MB | fit's | first update, s | fit's |"
    )
    print("| --- |" + " --- |" * 9)
    for name in names:
        print(row(name, rounds), flush=True)
