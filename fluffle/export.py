"""Exports: what came out of a run, for other programs.

Weights as NumPy arrays and metrics need nothing but the run folder; a Keras model needs
TensorFlow and the task.
"""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from fluffle.aggregator.ledger.damage import blamed
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.strategies.base import model_of
from fluffle.history import columns, history
from fluffle.outputs import may_replace
from fluffle.schemas import Experiment, Plan, Tensors, UserError
from fluffle.schemas.tensors import dtype_name, model_groups
from fluffle.worker.services.client_state import ClientStates

_log = logging.getLogger(__name__)

Format = Literal["keras", "saved_model", "npz", "csv", "jsonl"]
#: Where clients keep what they need for their next turn, in the run folder.
STATES = "clients"
#: What the last version takes for what, beside its Keras file: for the report.
CONFUSION = "confusion.json"
_SUFFIX = {"keras": ".keras", "saved_model": ".savedmodel", "npz": ".npz"}


@dataclass(frozen=True)
class Weights:
    """One version of a run."""

    folder: Path
    version: int
    #: The run's newest.
    last: int
    tensors: Tensors
    experiment: Experiment


def export(
    folder: Path, kind: str, version: str, out: Path | None, client: str | None = None
) -> Path:
    """Write it, and say where. Raises: UserError.

    client: with what this client keeps, where weights are personal.

    kind: a ``Format``; version: "last", "best" or a number.
    """
    if kind not in get_args(Format):
        raise UserError(f"--format {kind}: use one of {', '.join(get_args(Format))}")
    with blamed(folder), closing(LedgerReader(folder)) as ledger, ledger.snapshot():
        if kind in ("csv", "jsonl"):
            rows = history(ledger)
            write: Callable[[Path], None] = _csv(rows) if kind == "csv" else _lines(rows)
            path = out or folder / f"metrics.{kind}"
        else:
            weights = read_weights(ledger, version)
            state = None if client is None else state_of(ledger, client)
            name = {"last": "model", "best": "best"}.get(version, f"version-{version}")
            name += "" if client is None else f"-of-client-{client}"
            path = out or folder / f"{name}{_SUFFIX[kind]}"
            write = _npz(weights, state) if kind == "npz" else _model(weights, kind, state)
    if out is not None:
        may_replace(out, [_SUFFIX.get(kind, f".{kind}")], "--out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def read_weights(ledger: LedgerReader, version: str) -> Weights:
    """A version's weights. Raises: UserError where they are not there (any more)."""
    wanted = _version(ledger, version)
    rows = ledger.query("SELECT file FROM versions WHERE version = ?", wanted)
    if not rows:
        newest = ledger.latest_version()
        raise UserError(f"there is no version {wanted} in {ledger.folder}: the last is {newest}")
    file = rows[0][0]
    if not (ledger.store.folder / file).exists():
        raise UserError(
            f"the weights of version {wanted} are gone: {ledger.folder} keeps the best evaluated "
            "version and the last ones (aggregation.keep_versions)"
        )
    experiment = Experiment.stored(ledger.meta["experiment"])
    tensors = model_groups(model_of(ledger.store.read(file)))
    return Weights(ledger.folder, wanted, ledger.latest_version(), tensors, experiment)


def save_models(folder: Path) -> None:
    """``model.keras`` of the last version and ``best.keras`` of the best, at the end of a run;
    arrays as ``.npz``.

    What cannot be saved is said, and no reason for a run to fail.
    """
    from fluffle.worker.tasks.arrays import ArrayTask
    from fluffle.worker.tasks.registry import load_task

    ledger = LedgerReader(folder)
    last, best = ledger.latest_version(), ledger.best()
    experiment = Experiment.model_validate_json(ledger.meta["experiment"])
    ledger.close()
    try:
        arrays = isinstance(load_task(Plan.of(experiment, "delta")), ArrayTask)
        model = export(folder, "npz" if arrays else "keras", "last", None)
        if best is not None and best[0] == last:
            shutil.copyfile(model, folder / f"best{model.suffix}")
        elif best is not None:
            export(folder, "npz" if arrays else "keras", "best", None)
    except (UserError, OSError) as error:
        _log.warning("the model was not saved as a Keras file: %s", error)


def _version(ledger: LedgerReader, text: str) -> int:
    if text == "last":
        if ledger.latest_version() < 0:
            raise UserError(f"{ledger.folder} has no version yet")
        return ledger.latest_version()
    if text == "best":
        best = ledger.best()
        if best is None:
            raise UserError(f"{ledger.folder} has no evaluated version whose weights were kept")
        return best[0]
    if not text.isdecimal():
        raise UserError(f"--version {text}: it is last, best or a number")
    return int(text)


def state_of(ledger: LedgerReader, client: str) -> Tensors:
    """What a client keeps after its last update that was counted. Raises: UserError."""
    experiment = Experiment.stored(ledger.meta["experiment"])
    if client in experiment.residents:
        raise UserError(f"{client} is a site: what it keeps is in a folder there, and stays there")
    if not (client.isdecimal() and int(client) < experiment.task.clients):
        raise UserError(
            f"--client {client}: the run's clients are 0 to {experiment.task.clients - 1}"
        )
    if not experiment.keeps_weights and experiment.training.algorithm in (None, "fedprox", "moon"):
        raise UserError(
            "the clients of this run keep no model of their own: that is what [weights] keep, or "
            "training.algorithm = 'ditto', is for"
        )
    name = ledger.client_states().get(client, "")
    states = ClientStates(ledger.folder / STATES)
    found = states.load(ledger.meta["run_id"], client, name) if name else None
    states.close()
    if found is None:
        raise UserError(
            f"nothing of client {client} is kept in {ledger.folder / STATES}: it has not trained, "
            "or its state is at the worker that trained it"
        )
    return found


def _npz(weights: Weights, state: Tensors | None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            # NumPy alone cannot read bfloat16; float32 holds it exactly.
            arrays: dict[str, Any] = {
                name: array.astype(np.float32) if dtype_name(array) == "bfloat16" else array
                for name, array in {**weights.tensors, **(state or {})}.items()
            }
            np.savez(file, **arrays)

    return write


def _model(weights: Weights, kind: str, state: Tensors | None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        if kind == "keras" and path.suffix != ".keras":
            raise UserError(f"--out {path}: Keras wants a name that ends in .keras")
        from fluffle.worker.training.runtime import configure

        configure(1, weights.experiment.training.engine)
        from fluffle.worker.tasks.arrays import ArrayTask
        from fluffle.worker.tasks.registry import load_task, trying

        plan = Plan.of(weights.experiment, "delta")
        if isinstance(task := load_task(plan), ArrayTask):
            task.model()  # says that there is none
        from fluffle.worker.training.confusion import confusion
        from fluffle.worker.training.saving import keras_model, save

        def make() -> None:
            model = keras_model(plan, weights.tensors, state)
            save(model, plan, path)
            counts = confusion(model, plan)
            if counts is not None and state is None and weights.version == weights.last:
                said = {"version": weights.version, "counts": counts.tolist()}
                (weights.folder / CONFUSION).write_text(json.dumps(said) + "\n")

        trying(task, make)

    return write


def _csv(rows: Sequence[dict[str, Any]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            names = columns(rows)
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([_no_formula(name) for name in names])
            writer.writerows([row.get(name, "") for name in names] for row in rows)

    return write


def _no_formula(name: str) -> str:
    """A head that no spreadsheet takes for a formula, whoever named the metric."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def _lines(rows: Sequence[dict[str, Any]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    return write
