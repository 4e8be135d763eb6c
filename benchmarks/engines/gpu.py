"""The JAX engine on the accelerator that there is; gpu.sh calls it, README.md says more.

    python benchmarks/engines/gpu.py [--small 1 64 256 1000] [--residual 1 2 4 8] [--seconds 10]

Made data: what is measured does not depend on the values. Rates are medians of the repeats of one
process, after compilation.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from fluffle import Examples, Task
from fluffle.schemas import Experiment, Plan
from fluffle.worker.tasks.registry import TASKS
from fluffle.worker.training.runtime import configure
from fluffle.worker.training.trained import Job

#: Clients of sixty images, batches of 10: experiments/small-clients.toml.
SMALL = {"epochs": 1, "batch_size": 10, "optimizer": "sgd", "learning_rate": 0.1}
RESIDUAL = {"epochs": 1, "batch_size": 50, "optimizer": "sgd", "learning_rate": 0.1}
#: Operations of one example's forward pass; a training step is three times as much.
SMALL_FLOP, RESIDUAL_FLOP = 2 * (784 * 128 + 128 * 10), 1.11e9


class Made(Task):
    """Random images of a shape, and labels of ten classes."""

    count, shape = 60_000, (784,)

    def model(self) -> Any:
        from keras import Sequential, layers

        return Sequential(
            [
                layers.Input(self.shape),
                layers.Dense(128, "relu"),
                layers.Dense(10, "softmax"),
            ]
        )

    def dataset(self) -> Examples:
        rng = np.random.default_rng(0)
        x = rng.integers(256, size=(self.count, *self.shape), dtype=np.uint8)
        return Examples(x, rng.integers(10, size=self.count))

    def preprocess(self, x: Any) -> Any:
        from keras import ops

        return ops.cast(x, "float32") / 255.0

    def test(self) -> Examples:
        x, y = self.dataset()
        return Examples(x[:1000], y[:1000])


class Residual(Made):
    """ResNet-18 for 32 x 32 pixels (arXiv 1512.03385), with group normalisation."""

    count, shape = 50_000, (32, 32, 3)

    def model(self) -> Any:
        import keras
        from keras import layers

        def convolved(x: Any, filters: int, stride: int = 1, size: int = 3) -> Any:
            x = layers.Conv2D(filters, size, stride, "same", use_bias=False)(x)
            return layers.GroupNormalization(8)(x)

        inputs = keras.Input(self.shape)
        x = layers.ReLU()(convolved(inputs, 64))
        for filters, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
            for stride in (first, 1):
                past = x if stride == 1 else convolved(x, filters, stride, 1)
                inner = layers.ReLU()(convolved(x, filters, stride))
                x = layers.ReLU()(layers.add([past, convolved(inner, filters)]))
        x = layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, layers.Dense(10, "softmax")(x))


def experiment(task: str, clients: int, training: dict[str, Any], lanes: int) -> Experiment:
    return Experiment.model_validate(
        {
            "experiment": {"versions": 60},
            "task": {"name": task, "clients": clients},
            "training": {**training, "engine": "jax", "lanes": lanes},
            "participation": {"concurrency": max(50, 2 * lanes)},
            "aggregation": {"strategy": "fedbuff", "quorum": max(10, lanes)},
            "evaluation": {"every_updates": 0},
            "devices": {"delay": "exponential", "delay_s": 2.0},
        }
    )


def bare(plan: Plan, clients: int, seconds: float, profile: Path | None = None) -> float:
    """Updates a second of steps one after the other: results come back to the host each time."""
    import jax

    from fluffle.worker.training.lanes.trainer import JaxTrainer

    trainer = JaxTrainer(plan)
    base, lanes, turn = trainer.initial(), trainer.lanes, 0

    def step() -> None:
        nonlocal turn
        jobs = [Job(str((turn + i) % clients), turn + i) for i in range(lanes)]
        trainer.train_many(base, jobs, [None] * lanes)
        turn += lanes

    step()
    tracing = jax.profiler.trace(str(profile)) if profile else contextlib.nullcontext()
    with tracing:
        step()
    took = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(took) < 3:
        started = time.perf_counter()
        step()
        took.append(time.perf_counter() - started)
    return lanes / statistics.median(took)


def simulated(told: Experiment) -> float | str:
    """Updates a second under the virtual clock, from a fifth of the run on."""
    try:
        from fluffle.aggregator.ledger.writer import Ledger
        from fluffle.display import Display
        from fluffle.running import run_virtual
    except ImportError as error:
        return f"left out: {error}"
    with tempfile.TemporaryDirectory() as folder, Display("gpu", quiet=True) as display:
        run_virtual(told, Path(folder) / "out", display, slots=2, save=False)
        ledger = Ledger(Path(folder) / "out")
        made = ledger.query("SELECT made_at, updates FROM versions ORDER BY version")
        ledger.close()
    steady = made[len(made) // 5 :]
    passed = steady[-1][0] - steady[0][0]
    return float(sum(count for _, count in steady[1:]) / passed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, nargs="*", default=[1, 64, 256, 1000])
    parser.add_argument("--residual", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--peak", type=float, default=67e12, help="FLOP/s of the card in float32")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--images", type=int, default=500, help="of a client of the ResNet")
    told = parser.parse_args()
    configure(2, "jax")
    import jax

    TASKS.update(made=Made, residual=Residual)
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}\n")
    print("| clients | lanes | how | updates/s | of the card's float32 peak |")
    print("| --- | --- | --- | --- | --- |")
    for lanes in told.small:
        one = experiment("made", 1000, SMALL, lanes)
        rate = bare(Plan.of(one, "delta"), 1000, told.seconds)
        share = rate * 60 * 3 * SMALL_FLOP / told.peak
        print(f"| small | {lanes} | bare | {rate:.0f} | {share:.2%} |", flush=True)
    if told.small:
        rate_or_why = simulated(experiment("made", 1000, SMALL, told.small[-1]))
        shown = rate_or_why if isinstance(rate_or_why, str) else f"{rate_or_why:.0f}"
        print(f"| small | {told.small[-1]} | virtual clock | {shown} | |", flush=True)
    clients = Residual.count // told.images
    for lanes in told.residual:
        one = experiment("residual", clients, RESIDUAL, lanes)
        profile = told.profile if lanes == told.residual[-1] else None
        rate = bare(Plan.of(one, "delta"), clients, told.seconds, profile)
        share = rate * told.images * 3 * RESIDUAL_FLOP / told.peak
        print(f"| ResNet-18 | {lanes} | bare | {rate:.3f} | {share:.2%} |", flush=True)


if __name__ == "__main__":
    main()
