"""The registry of selections: those of this package, of installed plug-ins, of a user's file."""

from __future__ import annotations

from pathlib import Path

from fluffle.aggregator.plugins import Plugins
from fluffle.aggregator.selections.base import Selection
from fluffle.aggregator.selections.min_separation import MinSeparation
from fluffle.aggregator.selections.oort import Oort
from fluffle.aggregator.selections.power_of_choice import PowerOfChoice
from fluffle.aggregator.selections.uniform import Uniform
from fluffle.schemas import Experiment
from fluffle.schemas.extensions import SELECTION

#: What ``participation.selection`` may name.
SELECTIONS: Plugins[Selection] = Plugins(
    SELECTION,
    Selection,
    {
        "uniform": Uniform,
        "min-separation": MinSeparation,
        "power-of-choice": PowerOfChoice,
        "oort": Oort,
    },
    "participation.selection_parameters",
)


def make_selection(experiment: Experiment, code: Path | None = None) -> Selection:
    """The selection that an experiment asks for, which has observed nothing yet.

    code: the folder of one from a file; by default the present one. Raises: UserError.
    """
    table = experiment.participation
    return SELECTIONS.make(table.selection, table.selection_parameters, code)


def check_selection(experiment: Experiment) -> None:
    """Raises: ValueError for one of ours that cannot be made, or not with this experiment."""
    table = experiment.participation
    made = SELECTIONS.checked(table.selection, table.selection_parameters)
    if made is not None:
        made.check(experiment)
