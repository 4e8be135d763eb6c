"""The registry of selections: those of this package, of installed plug-ins, of a user's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fluffle.aggregator.selections.base import Selection
from fluffle.aggregator.selections.min_separation import MinSeparation
from fluffle.aggregator.selections.oort import Oort
from fluffle.aggregator.selections.power_of_choice import PowerOfChoice
from fluffle.aggregator.selections.uniform import Uniform
from fluffle.schemas import Experiment, UserError
from fluffle.schemas.extensions import SELECTION, check_verbs

#: What ``participation.selection`` may name.
SELECTIONS: Mapping[str, Callable[..., Selection]] = {
    "uniform": Uniform,
    "min-separation": MinSeparation,
    "power-of-choice": PowerOfChoice,
    "oort": Oort,
}


def make_selection(experiment: Experiment, code: Path | None = None) -> Selection:
    """The selection that an experiment asks for, which has observed nothing yet.

    code: the folder of one from a file; by default the present one. Raises: UserError.
    """
    table = experiment.participation
    name, parameters = table.selection, table.selection_parameters or {}
    if name in SELECTIONS:
        return SELECTIONS[name](**parameters)
    made: Selection = SELECTION.make(name, parameters, code or Path())
    if not isinstance(made, Selection):
        raise UserError(f"the selection {name} is no fluffle.Selection: see docs/selection.md")
    check_verbs("the selection", name, made, ("choose",))
    return made


def check_selection(experiment: Experiment) -> None:
    """Raises: ValueError for one of ours that cannot be made, or not with this experiment."""
    name = experiment.participation.selection
    parameters: Mapping[str, Any] = experiment.participation.selection_parameters or {}
    if name not in SELECTIONS:
        return
    try:
        made = SELECTIONS[name](**parameters)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["participation.selection_parameters", *map(str, first["loc"])])
        raise ValueError(f"{where}: {first['msg']} (of {name})") from None
    except (TypeError, ValueError) as error:
        said = str(error).replace(f"{SELECTIONS[name].__name__}.__init__()", name)
        said = said.replace(f"{SELECTIONS[name].__name__}()", name)
        raise ValueError(f"participation.selection_parameters: {said}") from None
    made.check(experiment)
