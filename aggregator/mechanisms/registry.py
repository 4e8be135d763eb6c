"""The registry of mechanisms: those of this package, of installed plug-ins, of a user's file."""

from __future__ import annotations

from pathlib import Path

from fluffle.aggregator.mechanisms.banded import BandedMf
from fluffle.aggregator.mechanisms.base import checked
from fluffle.schemas import Experiment
from fluffle.schemas.extensions import MECHANISM, check_verbs, guarded
from fluffle.schemas.privacy import separation_of


def column_of(experiment: Experiment, code: Path | None = None) -> tuple[float, ...]:
    """The first column of C for an experiment with ``[privacy]``, of length 1. Raises: UserError.

    code: the folder of a mechanism from a file.
    """
    table = experiment.privacy
    assert table is not None
    separation = separation_of(experiment)
    if table.mechanism == "gaussian":
        return (1.0,)
    if table.mechanism == "banded-mf":
        return checked(BandedMf().column(experiment.experiment.versions, separation), "banded-mf")
    made = MECHANISM.make(table.mechanism, table.parameters, code or Path())
    check_verbs("the mechanism", table.mechanism, made, ("column",))
    what = f"mechanism {table.mechanism}"
    versions = experiment.experiment.versions
    column = guarded(what, made, lambda: list(made.column(versions, separation)))
    return checked(column, table.mechanism)
