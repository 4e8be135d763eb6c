"""The ledger against the broker that the run is on: durable before published, and what waits.

A broker shows what waits, not what was confirmed or is held unacked, and its queues are the whole
federation's: of these only the newest published model can be wrong. All else is said as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.sums import counted, rejected
from fluffle.broker.admin.inspection import NEWER, FederationView
from fluffle.schemas import DecodeError, GlobalModel, decode, tensors_sha256

#: What is the model's own of what travels with it.
_WEIGHTS = ("trainable/", "non_trainable/")


def wrong_at_broker(ledger: LedgerReader, view: FederationView) -> Iterator[str]:
    """What the newest published model says that the ledger does not know.

    ``view`` has to be older than the ledger's snapshot: a version is durable before it is
    published, so whatever was seen must be recorded by now.
    """
    model = _model_of_this_run(ledger, view)
    if model is None:
        return
    latest, meta = ledger.latest_version(), ledger.meta
    if model.run.epoch > int(meta["epoch"]):
        yield (
            f"version {model.version} was published in epoch {model.run.epoch}, but the ledger "
            f"knows only {meta['epoch']}: another aggregator leads this run elsewhere, or the "
            "ledger was restored from an older copy"
        )
    if not model.tensors:
        return  # it asks for the weights of version 0
    rows = ledger.query(
        "SELECT epoch, weights_sha256 FROM versions WHERE version = ?", model.version
    )
    if not rows:
        yield (
            f"version {model.version} was published, but the ledger ends with {latest}: it may "
            "have been restored from an older copy"
        )
        return
    ((epoch, sha256),) = rows
    if model.run.epoch < epoch:
        yield (
            f"version {model.version} was published in epoch {model.run.epoch}, before it was "
            f"made in epoch {epoch}"
        )
    weights = {k: a for k, a in model.tensors.items() if k.startswith(_WEIGHTS)}
    if tensors_sha256(weights) != sha256:
        yield f"version {model.version} was published with other weights than recorded"
    made_of = ledger.count(
        "updates WHERE disposition = 'counted' AND version BETWEEN 1 AND ?", model.version
    )
    if model.updates != made_of:
        yield (
            f"version {model.version} was published as made of {model.updates} updates; the "
            f"ledger counts {made_of}"
        )


def unpublished_end(ledger: LedgerReader, view: FederationView) -> str | None:
    """What is wrong with the end of a finished run; ``view`` has to be newer than the ledger's."""
    latest = ledger.latest_version()
    model = _model_of_this_run(ledger, view)
    if ledger.meta["status"] == "running" or latest < 0 or model is None:
        return None
    if any(one.startswith(NEWER) for one in view.unseen):
        return None
    if model.final and model.version == latest:
        return None
    return (
        f"the run is {ledger.meta['status']} with version {latest}, but the newest that was "
        f"published is {model.version}{'' if model.final else ', and not as the last'}"
    )


def seen_at_broker(ledger: LedgerReader, view: FederationView) -> Iterator[str]:
    """The balance as far as it can be seen, and what could not be."""
    model = _model_of_this_run(ledger, view)
    if model is not None:
        what = f"version {model.version}" if model.tensors else "a call for version 0"
        yield f"the newest model there is {what} of epoch {model.run.epoch}"
    elif view.newest is not None:
        yield f"the newest model there is of another run ({view.newest.message_id})"
    elif not any(one.startswith("the newest model") for one in view.unseen):
        yield "there is no model: the broker has lost it, or the run was on another"
    if view.led is not None:
        yield "an aggregator leads there" if view.led else "no aggregator leads there"
    in_versions = counted(ledger)
    rest = ledger.count("updates WHERE disposition != 'counted'")
    if view.updates is not None:
        yield (
            f"{view.updates} messages wait for an aggregator, beside {in_versions} updates counted "
            f"and {rest} buffered or unused; what one holds unacked cannot be seen"
        )
    if view.rejected is not None:
        yield _rejected(ledger, view.rejected)
    for one in view.unseen:
        yield f"could not look at {one}"


def _rejected(ledger: LedgerReader, there: int) -> str:
    recorded = sum(rejected(ledger).values())
    line = f"{there} messages lie in updates.rejected, {recorded} were rejected by this run"
    if there > recorded:
        return f"{line}; the others were dead-lettered, are second copies or of other runs"
    if there < recorded:
        return f"{line}; the others were only late, were taken away, or went after a week"
    return line


def _model_of_this_run(ledger: LedgerReader, view: FederationView) -> GlobalModel | None:
    if view.newest is None:
        return None
    try:
        model = decode(view.newest.body)
    except DecodeError:
        return None
    ours = isinstance(model, GlobalModel) and model.run.run_id == ledger.meta["run_id"]
    return model if ours and isinstance(model, GlobalModel) else None
