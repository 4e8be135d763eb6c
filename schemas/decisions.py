"""Selections and triggers as an experiment names them: looked up when one is read."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fluffle.schemas.extensions import SELECTION, TRIGGER

if TYPE_CHECKING:
    from fluffle.schemas.experiment import Experiment

_SELECTIONS = "fluffle.aggregator.selections.registry"
_TRIGGERS = "fluffle.aggregator.triggers.registry"


def check_names(experiment: Experiment) -> None:
    """Raises: ValueError for a name that nobody here can mean."""
    names = import_module(_SELECTIONS).SELECTIONS.ours
    SELECTION.check_name("participation.selection", experiment.participation.selection, names)
    names = import_module(_TRIGGERS).TRIGGERS.ours
    TRIGGER.check_name("aggregation.trigger", experiment.aggregation.trigger, names)


def check_decisions(experiment: Experiment) -> None:
    """Raises: ValueError for one of ours that cannot be made, or does not go with the rest."""
    import_module(_SELECTIONS).check_selection(experiment)
    import_module(_TRIGGERS).check_trigger(experiment)
