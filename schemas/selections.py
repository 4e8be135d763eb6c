"""Selections as an experiment names them: looked up in the aggregator, when one is read."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fluffle.schemas.experiment import Experiment

_REGISTRY = "fluffle.aggregator.selections.registry"


def selection_names() -> Iterable[str]:
    """Those that come with Fluffle."""
    names: Iterable[str] = import_module(_REGISTRY).SELECTIONS
    return names


def check_selection(experiment: Experiment) -> None:
    """Raises: ValueError for one of ours that cannot be made, or does not go with the rest."""
    import_module(_REGISTRY).check_selection(experiment)
