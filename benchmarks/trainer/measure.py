"""The compiled trainer against Keras: one client's update with each, in turns, in one run.

    python benchmarks/trainer/measure.py [--rounds 9]

Each side is a process of its own, warm, and one works at a time. ``fit`` has TensorFlow's default
threads, as a person would run it, or with ``one core`` the trainer's settings; the trainer has one
core. Times are medians; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from fluffle.schemas import Experiment, Plan

#: Examples per client and training of each task: experiments/seed.toml; McMahan et al. 2017.
WORK: dict[str, tuple[int, dict[str, Any]]] = {
    "mnist-mlp": (6_000, {"epochs": 5, "batch_size": 32, "optimizer": "adam"}),
    "mnist-cnn": (
        600,
        {"epochs": 1, "batch_size": 10, "optimizer": "sgd", "learning_rate": 0.05},
    ),
}


def plan_of(name: str) -> Plan:
    examples, training = WORK[name]
    table = {"name": name, "clients": 60_000 // examples}
    return Plan.of(Experiment.model_validate({"task": table, "training": training}), "delta")


def keras_fit(name: str) -> Callable[[], object]:
    """compile and fit, as in a tutorial, on float32 arrays that are ready in memory."""
    import keras

    from fluffle.worker.tasks.registry import load_task

    examples, training = WORK[name]
    task = load_task(plan_of(name))
    x = task.dataset().x[:examples].astype("float32") / 255
    y = task.dataset().y[:examples]
    model = task.model()
    optimizer: Any = "adam"
    if training["optimizer"] == "sgd":
        optimizer = keras.optimizers.SGD(training["learning_rate"])
    model.compile(optimizer=optimizer, loss=task.loss, metrics=["accuracy"])
    settings = {"epochs": training["epochs"], "batch_size": training["batch_size"], "verbose": 0}
    return lambda: model.fit(x, y, **settings)


def trainer(name: str, threads: int = 1) -> Callable[[], object]:
    """One update on each of this many threads."""
    from fluffle.worker.training.trainer import Trainer

    trainers = [Trainer(plan_of(name)) for _ in range(threads)]
    base = trainers[0].initial()

    def update() -> None:
        running = [
            threading.Thread(target=each.train, args=(base, "0", turn))
            for turn, each in enumerate(trainers)
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    return update


def evaluation(name: str) -> Callable[[], object]:
    """All 10,000 test images."""
    from fluffle.worker.training.trainer import Trainer

    one = Trainer(plan_of(name))
    weights = one.initial()
    return lambda: one.evaluate(weights)


def streamed(name: str, read: Callable[[Any, Any, str], Any]) -> Callable[[], object]:
    """One update, its examples from a ``tf.data`` stream."""
    import tensorflow as tf

    from fluffle.worker.tasks import registry as tasks
    from fluffle.worker.tasks.registry import TASKS, load_task
    from fluffle.worker.tasks.task import Examples, StreamedTask
    from fluffle.worker.training.streamed import StreamingTrainer

    examples, _ = WORK[name]
    model_of = TASKS[name]
    data = load_task(plan_of(name)).dataset()
    x, y = data.x[:examples], data.y[:examples]
    folder = tempfile.TemporaryDirectory()
    source = read(x, y, folder.name)

    class Streamed(StreamedTask, model_of):  # type: ignore[misc, valid-type]
        def stream(self, client: str, seed: int) -> tf.data.Dataset:
            return source().shuffle(examples, seed=seed)

        def test(self) -> Examples:
            return Examples(x[:10], y[:10])

    TASKS[name] = Streamed
    tasks.use(None, None)  # forget the one that was loaded
    one = StreamingTrainer(plan_of(name))
    base = one.initial()
    kept = folder  # until the side's process ends
    return lambda: (one.train(base, "0", 0), kept)


def from_arrays(x: Any, y: Any, folder: str) -> Callable[[], Any]:
    """Examples that are in memory, one by one."""
    import tensorflow as tf

    return lambda: tf.data.Dataset.from_tensor_slices((x, y))


def from_files(x: Any, y: Any, folder: str) -> Callable[[], Any]:
    """A file of bytes: each example's pixels, then its label."""
    import numpy as np
    import tensorflow as tf

    path = Path(folder) / "examples"
    rows = np.concatenate([x.reshape(len(x), -1), y[:, None]], axis=1).astype(np.uint8)
    path.write_bytes(rows.tobytes())

    def example(record: Any) -> Any:
        row = tf.io.decode_raw(record, tf.uint8)
        return tf.reshape(row[:-1], x.shape[1:]), row[-1]

    def source() -> Any:
        return tf.data.FixedLengthRecordDataset(str(path), rows.shape[1]).map(example)

    return source


SIDES: dict[str, tuple[Callable[[str], Callable[[], object]], bool]] = {
    "fit": (keras_fit, False),
    "fit, one core": (keras_fit, True),
    "trainer": (trainer, True),
    "trainer, 2 threads": (lambda name: trainer(name, 2), True),
    "stream, arrays": (lambda name: streamed(name, from_arrays), True),
    "stream, file": (lambda name: streamed(name, from_files), True),
    "evaluation": (evaluation, True),
}


def serve(side: str, name: str, pipe: Connection) -> None:
    """In the side's process: warm up, then time one call for each request."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    make, configured = SIDES[side]
    if configured:
        from fluffle.worker.training.runtime import configure

        configure(2)
    work = make(name)
    for _ in range(2):
        work()
    pipe.send("ready")
    while pipe.recv() == "go":
        started, cpu = time.perf_counter(), time.process_time()
        work()
        pipe.send((time.perf_counter() - started, time.process_time() - cpu))
    pipe.send(psutil.Process().memory_info().rss / 1e6)


def measure(name: str, rounds: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for side in SIDES:
        pipes[side], theirs = spawn.Pipe()
        spawn.Process(target=serve, args=(side, name, theirs), daemon=True).start()
        pipes[side].recv()
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, pipe in pipes.items():
            pipe.send("go")
            times[side].append(pipe.recv())
    print(f"\n| {name} | s | CPU s | RSS MB | against fit |")
    print("| --- | --- | --- | --- | --- |")
    for side, pipe in pipes.items():
        pipe.send("stop")
        updates = 2 if "2 threads" in side else 1
        walls = [wall / updates for wall, _ in times[side]]
        cpu = statistics.median(cpu / updates for _, cpu in times[side])
        ratios = [fit / wall for (fit, _), wall in zip(times["fit"], walls, strict=True)]
        against = "" if side == "evaluation" else f"{statistics.median(ratios):.1f} x"
        wall = statistics.median(walls)
        print(f"| {side} | {wall:.3f} | {cpu:.3f} | {pipe.recv():.0f} | {against} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    for task in WORK:
        measure(task, arguments.rounds)
