"""What it takes to verify a run, to keep its updates, and to replay it. README.md says what to
expect.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from fluffle.aggregator.coordinator.effects import Fold, MakeVersion
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.aggregator.verify import replay, verify
from fluffle.schemas import ClientUpdate, Experiment, Run, encode

#: Updates in a version; in those of the long run.
QUORUM, LONG_QUORUM = 10, 100
RUN = Run(run_id="run", run_started=1, epoch=1)


def fold_of(turn: int, version: int, clients: int) -> Fold:
    """A fresh update's row."""
    client = str(turn % clients)
    metrics = {"loss": 1.0, "accuracy": 0.5}
    return Fold(f"run:{turn}:{client}", client, turn, version - 1, 0, 10, "w", metrics, 1.0, 2.0)


def verify_s(folder: Path, updates: int) -> float:
    """Seconds to verify a run of so many updates."""
    experiment = Experiment.model_validate(
        {"task": {"clients": 1000}, "aggregation": {"quorum": LONG_QUORUM}}
    )
    ledger = Ledger(folder, durable=False)
    ledger.open_run(experiment, "run", 1)
    ledger.lead()
    state = {"model/trainable/0": np.zeros(100, np.float32)}
    for version in range(updates // LONG_QUORUM + 1):
        last = version * LONG_QUORUM
        turns = range(last - LONG_QUORUM + 1, last + 1) if version else ()
        folds = [fold_of(turn, version, 1000) for turn in turns]
        closed_by = "quorum" if version else "initial"
        made = MakeVersion(version, state, closed_by, folds, last + 1)
        ledger.make_version(made, {}, float(version), keep=3)
    ledger.finish("finished", "", [], {}, 1.0)
    ledger.close()
    reader = LedgerReader(folder)
    began = time.perf_counter()
    assert verify(reader) == []
    return time.perf_counter() - began


def versions_s(folder: Path, parameters: int, versions: int, keep: bool) -> list[float]:
    """Seconds for each version of ``QUORUM`` updates, from folding to durable."""
    table = {"quorum": QUORUM, "keep_updates": keep}
    experiment = Experiment.model_validate({"aggregation": table})
    strategy = make_strategy(experiment)
    ledger = Ledger(folder)
    ledger.open_run(experiment, "run", 1)
    ledger.lead()
    rng = np.random.default_rng(0)
    state = strategy.init({"trainable/0": rng.normal(size=parameters).astype(np.float32)})
    ledger.make_version(MakeVersion(0, state, "initial", [], 1), {}, 0.0, keep=3)
    delta = {"trainable/0": rng.normal(size=parameters).astype(np.float32)}
    took = []
    for version in range(1, versions + 1):
        turns = range((version - 1) * QUORUM + 1, version * QUORUM + 1)
        folds = [fold_of(turn, version, 10) for turn in turns]
        updates = [_update(fold, delta) for fold in folds]
        bodies = [encode(update) for update in updates]
        began = time.perf_counter()
        for update, body in zip(updates, bodies, strict=True):
            state = strategy.accept(state, update, 0)
            ledger.keep_update(update.update_id, body)
        state = strategy.step(state)
        made = MakeVersion(version, state, "quorum", folds, version * QUORUM + 1)
        ledger.make_version(made, {}, 0.0, keep=3)
        took.append(time.perf_counter() - began)
    ledger.close()
    return took


def _update(fold: Fold, delta: dict[str, np.ndarray]) -> ClientUpdate:
    return ClientUpdate(
        run=RUN,
        update_id=fold.update_id,
        client=fold.client,
        turn=fold.turn,
        base_version=fold.base_version,
        worker="w",
        sends="delta",
        examples=fold.examples,
        tensors=delta,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--versions", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = verify_s(Path(folder), arguments.updates)
        print(f"verify of {arguments.updates} updates: {seconds:.1f} s")
    print("| model | a version without | with kept updates | replay |")
    print("| --- | --- | --- | --- |")
    for parameters in (100_000, 1_000_000, 11_000_000):
        with tempfile.TemporaryDirectory() as folder:
            plain, kept = (
                statistics.median(
                    versions_s(Path(folder) / str(keep), parameters, arguments.versions, keep)
                )
                for keep in (False, True)
            )
            began = time.perf_counter()
            done = replay(LedgerReader(Path(folder) / "True"))
            rate = done.bytes / 1e6 / (time.perf_counter() - began)
            assert done.problem is None
            assert done.versions == arguments.versions
        print(
            f"| {parameters * 4 / 1e6:g} MB | {plain * 1e3:.0f} ms | {kept * 1e3:.0f} ms "
            f"| {rate:.0f} MB/s |"
        )


if __name__ == "__main__":
    main()
