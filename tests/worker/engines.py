"""Trainings of one engine, for tests/worker/test_jax.py: a process has one engine.

``python -m tests.worker.engines ENGINE FILE`` writes what each case's training gives.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fluffle import Examples, Task
from fluffle.display import Display
from fluffle.running import run_experiment, run_virtual
from fluffle.schemas import Experiment, Plan, UserError
from fluffle.worker.tasks import registry
from fluffle.worker.training.per_plan import make_slot_trainer, make_trainer
from fluffle.worker.training.runtime import configure
from fluffle.worker.training.trial import check

SCHEDULE = {"kind": "cosine", "over": 6, "warmup": 2}
#: Name -> (model's layers, [training], whether all examples are one: batches have no order then).
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "nesterov": ("dense", {"momentum": 0.9, "nesterov": True}, False),
    "adamw": ("dense", {"optimizer": "AdamW", "optimizer_parameters": {"clipnorm": 0.1}}, False),
    "fedprox": ("dense", {"proximal_mu": 1.0, "local_schedule": SCHEDULE}, False),
    "short batches": ("dense", {"batch_size": 5}, True),
    "weights": ("weighted", {"batch_size": 5}, True),
    "batch statistics, short batches": ("normalised", {"batch_size": 5}, True),
    "recurrent": ("recurrent", {"optimizer": "adam"}, False),
    "two outputs": ("two", {}, False),
    "int weights": ("counting", {}, False),
    "sequences, short batches": ("sequence", {"batch_size": 5}, True),
}
EXAMPLES = 12
EVALUATED = ("nesterov", "two outputs", "batch statistics, short batches")


class Toy(Task):
    """Random examples, or one many times; layers as the class is told."""

    def model(self) -> Any:
        import keras
        from keras import layers

        class Seen(layers.Layer):  # type: ignore[misc]
            def build(self, shape: Any) -> None:
                kept = {"dtype": "int32", "trainable": False}
                self.seen = self.add_weight(shape=(2,), initializer="ones", **kept)

            def call(self, x: Any) -> Any:
                return x

        i = keras.Input((6,))
        inner = layers.Dense(5, "tanh", kernel_regularizer="l2")(i)
        if self.kind == "normalised":
            inner = layers.BatchNormalization()(inner)
        if self.kind == "recurrent":
            inner = layers.GRU(4)(layers.Reshape((2, 3))(i))
        if self.kind == "sequence":
            inner = layers.Dense(4, "tanh")(layers.Reshape((2, 3))(i))
        outputs = layers.Dense(3, "softmax", name="a")(inner)
        if self.kind == "two":
            outputs = [outputs, layers.Dense(3, "softmax", name="b")(inner)]
        if self.kind == "counting":
            outputs = Seen()(outputs)
        return keras.Model(i, outputs)

    kind, same = "dense", False

    @property
    def loss(self) -> Any:  # type: ignore[override]
        """Of each output."""
        name = "sparse_categorical_crossentropy"
        return [name, name] if self.kind == "two" else name

    @property
    def loss_weights(self) -> Any:  # type: ignore[override]
        """Of two outputs."""
        return [1.0, 0.5] if self.kind == "two" else None

    @property
    def metrics(self) -> Any:  # type: ignore[override]
        """Of each output."""
        return ["accuracy"] if self.kind != "two" else [["accuracy"], ["accuracy"]]

    def dataset(self) -> Examples:
        rng = np.random.default_rng(0)
        shape = (EXAMPLES, 2) if self.kind == "sequence" else EXAMPLES
        x, y = rng.normal(size=(EXAMPLES, 6)).astype("float32"), rng.integers(3, size=shape)
        if self.same:
            x, y = x[:1].repeat(EXAMPLES, 0), y[:1].repeat(EXAMPLES, 0)
        return Examples(x, [y, y] if self.kind == "two" else y)

    def validation(self) -> Examples | None:
        if self.kind != "dense":
            return None
        x, y = self.dataset()
        return Examples(x[:7], y[:7])

    def sample_weights(self) -> Any:
        return np.full(EXAMPLES, 0.3) if self.kind == "weighted" else None

    def test(self) -> Examples:
        return self.dataset()


def outcomes(engine: str) -> dict[str, Any]:
    """ "CASE/NAME" -> array or number."""
    found: dict[str, Any] = {}
    for case, (kind, training, same) in CASES.items():
        name = f"{kind}-{same}"
        registry.TASKS[name] = type("Toy", (Toy,), {"kind": kind, "same": same})
        tables = {
            "task": {"name": name, "clients": 1},
            "training": {
                **{"optimizer": "sgd", "learning_rate": 0.1, "epochs": 3, "batch_size": EXAMPLES},
                **training,
                **({"engine": "jax"} if engine == "jax" else {}),
            },
        }
        trainer = make_trainer(Plan.of(Experiment.model_validate(tables), "delta"))
        rng = np.random.default_rng(1)  # each engine's initial weights are its own
        base = {
            name: rng.normal(size=array.shape).astype(array.dtype)
            if name.startswith("trainable")
            else array
            for name, array in trainer.initial().items()
        }
        trained = trainer.train(base, "0", 1)
        found |= {f"{case}/{name}": array for name, array in trained.tensors.items()}
        found |= {f"{case}/metrics/{name}": value for name, value in trained.metrics.items()}
        if case in EVALUATED:
            for name, value in trainer.evaluate(trained.tensors)[0].items():
                found[f"{case}/evaluated/{name}"] = value
    return found


class Far(Toy):
    """Labels that the model has no output for."""

    def dataset(self) -> Examples:
        x, y = super().dataset()
        return Examples(x, y + 2)


class Unmeasured(Toy):
    """No accuracy."""

    metrics = ()  # type: ignore[assignment]


def refusals() -> dict[str, str]:
    """What is said of tasks that would be trained, and not as they are meant."""
    found = {}
    for kind in (Far, Unmeasured):
        registry.TASKS[kind.__name__] = kind
        tables = {
            "experiment": {"target_accuracy": 0.9},
            "task": {"name": kind.__name__, "clients": 1},
            "training": {"engine": "jax"},
        }
        try:
            check(Experiment.model_validate(tables))
        except UserError as error:
            found[f"refused/{kind.__name__}"] = str(error)
    return found


def run_with(slots: int, folder: Path) -> str:
    """A hash of what a run under the virtual clock comes to."""
    tables = {
        "experiment": {"versions": 3},
        "task": {"name": "digits-lr", "clients": 9},
        "partition": {"kind": "dirichlet", "alpha": 1.0},
        "training": {"engine": "jax", "lanes": 4, "batch_size": 10, "optimizer": "sgd"},
        "participation": {"concurrency": 8},
        "aggregation": {"strategy": "fedbuff", "quorum": 4},
        "devices": {"delay": "exponential", "delay_s": 1.0},
    }
    with Display("test", quiet=True) as display:
        experiment = Experiment.model_validate(tables)
        return str(run_virtual(experiment, folder, display, slots=slots)["weights_sha256"])


def alone_and_together() -> None:
    """A client's training is the same whoever shares the step."""
    from fluffle.worker.training.trained import Job

    tables = {
        "task": {"name": "dense-False", "clients": 4},
        "training": {"engine": "jax", "lanes": 4, "batch_size": 2, "learning_rate": 0.1},
    }
    trainer: Any = make_trainer(Plan.of(Experiment.model_validate(tables), "delta"))
    base = trainer.initial()
    jobs = [Job(str(client), 7) for client in range(4)]
    together = trainer.train_many(base, jobs, [None] * 4)
    others = trainer.train_many(base, [jobs[2], jobs[0], jobs[3], jobs[1]], [None] * 4)
    for name, array in together[2].tensors.items():
        assert (array == others[0].tensors[name]).all(), name
        alone = trainer.train(base, "2", 7).tensors[name]
        np.testing.assert_allclose(array, alone, rtol=1e-5, atol=1e-6)
        assert (array != together[1].tensors[name]).any(), name


def run_by_threads(slots: int, folder: Path) -> str:
    """A hash of what a deterministic cohort comes to, whose turns threads take in real time."""
    tables = {
        "experiment": {"versions": 3},
        "task": {"name": "digits-lr", "clients": 9},
        "partition": {"kind": "dirichlet", "alpha": 1.0},
        "training": {"engine": "jax", "lanes": 4, "batch_size": 10, "optimizer": "sgd"},
        "participation": {"mode": "cohort"},
        "aggregation": {"quorum": 9, "deterministic": True, "on_deadline": "extend"},
    }
    with Display("test", quiet=True) as display:
        experiment = Experiment.model_validate(tables)
        return str(run_experiment(experiment, folder, display, slots=slots)["weights_sha256"])


class Broken(Toy):
    """One client's inputs are no numbers."""

    def dataset(self) -> Examples:
        x, y = super().dataset()
        x[5] = np.nan
        return Examples(x, y)


def one_fails_alone() -> dict[str, str]:
    """What becomes of each of four trainings that share a step, one of which cannot be done."""
    registry.TASKS["Broken"] = Broken
    tables = {
        "task": {"name": "Broken", "clients": 4},
        "training": {"engine": "jax", "lanes": 4},
    }
    trainer = make_slot_trainer(Plan.of(Experiment.model_validate(tables), "delta"))
    base = trainer.initial()

    def train(client: int) -> str:
        try:
            return str(trainer.train(base, str(client), 1).examples)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(4) as threads:
        found = threads.map(train, range(4))
        return {f"broken/{client}": text for client, text in enumerate(found)}


if __name__ == "__main__":
    configure(1, sys.argv[1])
    values = outcomes(sys.argv[1])
    if sys.argv[1] == "jax":
        alone_and_together()
        values |= refusals()
        for slots in (1, 3):
            values[f"slots/{slots}"] = run_with(slots, Path(sys.argv[2]).parent / f"run-{slots}")
        for slots in (2, 6):
            folder = Path(sys.argv[2]).parent / f"threads-{slots}"
            values[f"threads/{slots}"] = run_by_threads(slots, folder)
        values |= one_fails_alone()
    np.savez(sys.argv[2], **{name.replace("/", "|"): value for name, value in values.items()})
