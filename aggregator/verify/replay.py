"""A replay of every version from the archived updates, compared with the ledger.

A version is a pure function of the one before and of its updates in the order in which they were
folded, so the strategy's own functions have to give the recorded bytes again: whatever partial
checkpoints, crashes and restarts lay between. Bytes are promised where the arithmetic is the same
(``arithmetic``); elsewhere the weights that are still there agree within ``TOLERANCE``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fluffle.aggregator.coordinator.admission import restored
from fluffle.aggregator.coordinator.selection import client_order
from fluffle.aggregator.ledger.archive import Place, read_kept
from fluffle.aggregator.ledger.arithmetic import arithmetic
from fluffle.aggregator.ledger.privacy import noise_of
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.strategies.base import State, Strategy, model_of, told, update_spec
from fluffle.aggregator.strategies.custom import CODE
from fluffle.aggregator.strategies.registry import make_strategy, protected
from fluffle.schemas import ClientUpdate, DecodeError, Experiment, Tensors, UserError, decode
from fluffle.schemas.sizes import human_bytes
from fluffle.schemas.tensors import Array, spec, tensors_sha256

#: How far weights may be apart on another machine, relative to the largest of their tensor.
TOLERANCE = 1e-5


class Wrong(Exception):
    """A version cannot be recomputed, or is another one; the evidence in one line."""


@dataclass
class Replayed:
    """What came out."""

    versions: int = 0
    updates: int = 0
    bytes: int = 0
    #: The first thing that is wrong.
    problem: str | None = None
    #: Under which arithmetic the run was made, where it is not the one here.
    elsewhere: str | None = None
    #: Versions with other bytes than the ledger's: a problem unless the run was made elsewhere.
    other_bytes: list[int] = field(default_factory=list)
    #: Of these, version -> how far its weights are from those in its file.
    apart: dict[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        what = (
            f"{self.versions} versions from {self.updates} kept updates ({human_bytes(self.bytes)})"
        )
        if not self.other_bytes:
            where = f", though made on {self.elsewhere}" if self.elsewhere else ""
            return f"replayed {what}: byte for byte the same{where}"
        return (
            f"replayed {what}: made on {self.elsewhere}, and bytes are promised only there (here: "
            f"{arithmetic()}); {len(self.other_bytes)} versions have other bytes, the first is "
            f"{self.other_bytes[0]}; of {len(self.apart)} of them the weights are still here and "
            f"at most {max(self.apart.values(), default=0.0):.1e} apart"
        )


def replay(ledger: LedgerReader) -> Replayed:
    """Recompute the whole run. Raises: UserError where it has kept no updates."""
    experiment = Experiment.stored(ledger.meta["experiment"])
    if experiment.secure_aggregation is not None:
        raise UserError(
            f"{ledger.folder} is a run with [secure_aggregation]: its updates came under masks, "
            "and nobody has them to replay; without --replay its record is checked"
        )
    if not experiment.aggregation.keep_updates:
        raise UserError(
            f"{ledger.folder} has kept no updates to replay: they are kept where "
            "aggregation.keep_updates = true from the start of a run"
        )
    done = Replayed()
    made_on = json.loads(ledger.meta["arithmetic"])
    if made_on != [arithmetic()]:
        done.elsewhere = " and ".join(made_on)
    try:
        strategy = make_strategy(experiment, ledger.folder / CODE)
        strategy = protected(strategy, experiment, *noise_of(ledger.meta, again=True))
        _replay(ledger, experiment, strategy, done)
    except Wrong as wrong:
        done.problem = str(wrong)
    return done


def _replay(
    ledger: LedgerReader, experiment: Experiment, strategy: Strategy, done: Replayed
) -> None:
    state: State = {}
    versions = ledger.query("SELECT version, weights_sha256, file FROM versions ORDER BY version")
    for version, sha256, file in versions:
        updates = _updates(ledger, done, "u.version = ?", version)
        if version == 0:
            state = ledger.store.read(file)
            for update, _ in updates:
                given = {key: array.copy() for key, array in update.tensors.items()}
                _compare(ledger, done, version, sha256, file, model_of(strategy.init(given)))
        else:
            state = _folded(strategy, state, updates, experiment)
            state = strategy.step(told(strategy, state, ledger.heard(version)))
        _compare(ledger, done, version, sha256, file, model_of(state))
        done.versions += version > 0
    buffer_file = ledger.meta.get("buffer_file")
    if versions and buffer_file and not ledger.has_moved_on():
        updates = _updates(ledger, done, "u.disposition = 'buffered'")
        state = _folded(strategy, state, updates, experiment)
        sums = {k: a for k, a in state.items() if k.startswith("buffer/")}
        saved = ledger.store.read(buffer_file)
        same = tensors_sha256(sums) == tensors_sha256(saved)
        if not same and not (done.elsewhere and _distance(sums, saved) <= TOLERANCE):
            raise Wrong(f"the open buffer has other sums than its updates: {buffer_file}")


def _folded(
    strategy: Strategy,
    state: State,
    updates: Iterator[tuple[ClientUpdate, int]],
    experiment: Experiment,
) -> State:
    """``state`` with the updates folded in: as they came, or in client order."""
    order = updates
    if experiment.aggregation.deterministic:
        order = iter(sorted(updates, key=lambda pair: client_order(pair[0].client)))
    expected = update_spec(strategy, model_of(state))
    for update, staleness in order:
        sent, reason = restored(update, experiment.update or (), expected)
        if reason is not None:
            raise Wrong(f"update {update.update_id} cannot be folded: {reason}")
        state = strategy.accept(state, sent, staleness)
    return state


def _updates(
    ledger: LedgerReader, done: Replayed, where: str, *parameters: object
) -> Iterator[tuple[ClientUpdate, int]]:
    """The archived updates of a buffer with their staleness, one in memory at a time."""
    rows = ledger.query(
        "SELECT u.update_id, u.client, u.turn, u.base_version, u.examples, u.staleness,"
        " k.segment, k.start, k.bytes, k.sha256 FROM updates u LEFT JOIN kept k USING (update_id)"
        f" WHERE {where} ORDER BY u.position",
        *parameters,
    )
    for update_id, client, turn, base_version, examples, staleness, *place in rows:
        if place[0] is None:
            raise Wrong(f"update {update_id} was not kept")
        body = read_kept(ledger.folder, Place(*place))
        if body is None:
            raise Wrong(f"update {update_id} is missing or damaged in {place[0]} at {place[1]}")
        try:
            update = decode(body)
        except DecodeError as error:
            raise Wrong(f"update {update_id} cannot be decoded: {error}") from error
        if not isinstance(update, ClientUpdate):
            raise Wrong(f"update {update_id} was kept as a {update.type}")
        says = (update.update_id, update.client, update.turn, update.base_version, update.examples)
        if says != (update_id, client, turn, base_version, examples):
            raise Wrong(f"update {update_id} was kept as {says}, which is not what was recorded")
        done.updates += 1
        done.bytes += len(body)
        yield update, staleness


def _compare(
    ledger: LedgerReader, done: Replayed, version: int, sha256: str, file: str, model: Tensors
) -> None:
    """Note that this version has other bytes. Raises: Wrong where it may not."""
    found = tensors_sha256(model)
    if found == sha256:
        return
    if not done.elsewhere:
        raise Wrong(
            f"version {version} comes out with other weights ({found[:16]}…) than recorded "
            f"({sha256[:16]}…)"
        )
    done.other_bytes.append(version)
    if ledger.store.intact(file):
        apart = _distance(model, model_of(ledger.store.read(file)))
        done.apart[version] = apart
        if not apart <= TOLERANCE:
            raise Wrong(
                f"version {version} comes out {apart:.1e} apart from its recorded weights, over "
                f"{TOLERANCE:.0e}"
            )


def _distance(a: Tensors, b: Tensors) -> float:
    """The largest difference, relative to the largest value of its tensor; inf between shapes."""
    if spec(a) != spec(b):
        return float("inf")
    return max((_apart(a[key], b[key]) for key in a if a[key].size), default=0.0)


def _apart(a: Array, b: Array) -> float:
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    difference, scale = float(np.abs(left - right).max()), float(np.abs(right).max())
    return difference / scale if scale else difference
