"""Bytes to the same accuracy: fine-tuning all weights, low-rank adapters, or the head alone.

A network that has learned 720 digits upright is fine-tuned by ten clients on others in a mirror.
"""

from __future__ import annotations

import statistics
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from sweep import Measured, Tables, merged, reached, simulate

from fluffle import Examples, Task
from fluffle.worker.tasks.registry import TASKS

TARGET = 0.85
SEEDS = (1, 2, 3)
SEARCH_SEED = 100
#: How long a search goes on, whatever it reaches.
SEARCH: Tables = {"experiment": {"versions": 30, "target_accuracy": None}}
WIDTH = 768
#: How many examples the network has learned from, upright, and for how many epochs.
BEFORE, EPOCHS = 720, 10

COMMON: Tables = {
    "experiment": {"versions": 80, "target_accuracy": TARGET},
    "task": {"clients": 10},
    # Concentration 0.5 for each of ten balanced classes.
    "partition": {"kind": "dirichlet", "alpha": 5.0},
    "training": {"epochs": 1, "batch_size": 16, "optimizer": "adam"},
    "participation": {"mode": "cohort"},
    "aggregation": {"strategy": "fedavg", "quorum": 10, "deadline_s": 10_000.0},
    "evaluation": {"every_updates": 10},
}
_EIGHT = [{"kind": "quantise", "bits": 8}]


class Method(NamedTuple):
    """What is trained and sent."""

    learning_rate: float
    #: Of the adapters.
    rank: int = 0
    tables: Tables = MappingProxyType({})
    #: The learning rates that were tried; the others take one of these methods'.
    rates: tuple[float, ...] = ()


_ADAPTERS: Tables = {"weights": {"send": ["*lora*"]}}
METHODS: dict[str, Method] = {
    "all weights": Method(0.003, rates=(0.0003, 0.001, 0.003)),
    "all weights, 8 bits": Method(0.003, tables={"update": _EIGHT}),
    "head alone": Method(0.01, 0, {"weights": {"send": ["head/*"]}}, (0.003, 0.01, 0.03)),
    "LoRA, rank 1": Method(0.03, 1, _ADAPTERS, (0.003, 0.01, 0.03)),
    "LoRA, rank 2": Method(0.03, 2, _ADAPTERS),
    "LoRA, rank 2, 8 bits": Method(0.03, 2, merged(_ADAPTERS, {"update": _EIGHT})),
}


@cache
def digits(part: str, start: int, end: int | None, mirrored: bool) -> Examples:
    """Images as rows. part: train or test."""
    from fluffle.worker.datasets import load

    data = load("digits")
    x, y = (np.asarray(getattr(data, f"{a}_{part}")[start:end]) for a in "xy")
    images = x.reshape(-1, 8, 8).astype(np.float32) / 16
    return Examples((images[:, :, ::-1] if mirrored else images).reshape(-1, 64), y)


def network() -> Any:
    """64-768-768-10."""
    import keras
    from keras import layers

    body = [layers.Dense(WIDTH, activation="relu", name=f"body_{i}") for i in range(2)]
    head = layers.Dense(10, activation="softmax", name="head")
    return keras.Sequential([keras.Input((64,)), *body, head])


@cache
def learned() -> list[Any]:
    """The weights after upright digits: the same in every run."""
    from fluffle.worker.training.trainer import seeded

    with seeded(0):
        model = network()
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(*digits("train", 0, BEFORE, False), epochs=EPOCHS, batch_size=32, verbose=0)
    return list(model.get_weights())


class Mirrored(Task):
    """Digits in a mirror, for a network that knows them upright."""

    rank = 0

    def model(self) -> Any:
        """The network, with adapters where there are any."""
        model = network()
        model.set_weights(learned())
        if self.rank:
            for layer in model.layers:
                layer.enable_lora(self.rank)
        return model

    def dataset(self) -> Examples:
        """Images that it has not seen."""
        return digits("train", BEFORE, None, True)

    def test(self) -> Examples:
        """And those held out."""
        return digits("test", 0, None, True)


def tables(method: str, seed: int, rate: float | None = None) -> Tables:
    """The experiment of one run; its task is registered."""
    chosen, rank, sent, _ = METHODS[method]
    name = f"benchmark-mirrored-{rank}"
    TASKS[name] = type(f"Mirrored{rank}", (Mirrored,), {"rank": rank})
    own: Tables = {
        "experiment": {"seed": seed},
        "task": {"name": name},
        "training": {"learning_rate": rate or chosen},
    }
    return merged(COMMON, own, sent)


def search() -> None:
    """Print what each learning rate gives, with a seed of its own."""
    learned()
    for method, of in METHODS.items():
        for rate in of.rates:
            run = simulate(merged(tables(method, SEARCH_SEED, rate), SEARCH))
            met = reached(run, TARGET)
            updates = met.updates if met else None
            print(
                f"{method}, {rate}: {updates} updates, {run[-1].accuracy:.3f} at the end",
                flush=True,
            )


def row(method: str, of: list[list[Measured]], whole: tuple[float, float | None]) -> str:
    """A line of the table. whole: kB an update, and MB to the target, of all weights."""
    size, mb = numbers(of)
    line = f"| {method} | {size:.1f} | {100 * size / whole[0]:.2f} % |"
    if mb is None or whole[1] is None:
        met = sum(reached(run, TARGET) is not None for run in of)
        best = max(m.accuracy for run in of for m in run)
        return f"{line} {met} of {len(of)} runs, {best:.1%} at most | – | – |"
    updates = [m.updates for run in of if (m := reached(run, TARGET)) is not None]
    counts = f"{statistics.mean(updates):.0f} ({min(updates)} to {max(updates)})"
    return f"{line} {counts} | {mb:.2f} | {100 * mb / whole[1]:.2f} % |"


def numbers(of: list[list[Measured]]) -> tuple[float, float | None]:
    """kB an update, and MB to the target where all runs reach it."""
    size = statistics.mean(run[-1].bytes_up / run[-1].updates for run in of) / 1e3
    met = [m for m in (reached(run, TARGET) for run in of) if m is not None]
    mb = statistics.mean(m.bytes_up for m in met) / 1e6 if len(met) == len(of) else None
    return size, mb


def measure(seeds: int = len(SEEDS)) -> None:
    """Print the table, a line for each method."""
    learned()
    print(
        f"| what is trained | kB an update | of all | updates to {TARGET:.0%} | MB | of all |\n"
        "| --- |" + " --- |" * 5
    )
    whole: tuple[float, float | None] | None = None
    for method in METHODS:
        of = [simulate(tables(method, seed)) for seed in SEEDS[:seeds]]
        whole = whole or numbers(of)
        print(row(method, of, whole), flush=True)
