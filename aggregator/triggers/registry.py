"""The triggers that come with Fluffle, and the registry of these and all others.

updates::   K of them, whoever they are from
clients::   of K different clients
examples::  trained on so many examples together
"""

from __future__ import annotations

from pathlib import Path

from fluffle.aggregator.plugins import Plugins
from fluffle.aggregator.triggers.base import Held, Trigger
from fluffle.schemas import Experiment
from fluffle.schemas.extensions import TRIGGER

#: The trigger that goes with everything.
DEFAULT = "updates"


class Updates(Trigger):
    """K updates."""

    def due(self, held: Held) -> bool:
        """updates >= K"""
        return held.updates >= held.quorum


class Clients(Trigger):
    """Updates of K different clients: who is fast counts more than once, and closes nothing."""

    def due(self, held: Held) -> bool:
        """clients >= K"""
        return len(held.clients) >= held.quorum


class Examples(Trigger):
    """Updates that were trained on so many examples together."""

    def __init__(self, examples: int) -> None:
        """examples: of all updates of a version."""
        if isinstance(examples, bool) or not isinstance(examples, int) or examples < 1:
            raise ValueError("examples is a number of examples, 1 or more")
        self._examples = examples

    def due(self, held: Held) -> bool:
        """The sum of n_i reaches it."""
        return held.examples >= self._examples

    def check(self, experiment: Experiment) -> None:
        """Raises: ValueError for a quorum, which would say nothing, and where a run might stall."""
        if not experiment.task.clients and experiment.aggregation.on_deadline == "extend":
            raise ValueError(
                "sites count once for a version, and may not have so many examples together: with "
                "trigger = 'examples' and sites alone set on_deadline to 'step' or 'abort'"
            )
        if experiment.aggregation.quorum is not None:
            raise ValueError("aggregation.quorum says nothing beside trigger = 'examples'")


#: What ``aggregation.trigger`` may name.
TRIGGERS: Plugins[Trigger] = Plugins(
    TRIGGER,
    Trigger,
    {DEFAULT: Updates, "clients": Clients, "examples": Examples},
    "aggregation.trigger_parameters",
)


def make_trigger(experiment: Experiment, code: Path | None = None) -> Trigger:
    """The trigger that an experiment asks for.

    code: the folder of one from a file; by default the present one. Raises: UserError.
    """
    table = experiment.aggregation
    return TRIGGERS.make(table.trigger, table.trigger_parameters, code)


def check_trigger(experiment: Experiment) -> None:
    """Raises: ValueError for one that cannot be made, or does not go with the rest."""
    table = experiment.aggregation
    made = TRIGGERS.checked(table.trigger, table.trigger_parameters)
    if table.trigger != DEFAULT:
        if experiment.participation.mode == "cohort":
            raise ValueError(
                "aggregation.trigger goes with participation.mode = 'concurrent': a cohort's "
                "version is made of the cohort"
            )
        if table.one_by_one:
            raise ValueError(
                f"{table.strategy} makes a version of every update: remove aggregation.trigger"
            )
        if experiment.privacy is not None and table.trigger != "clients":
            raise ValueError(
                "[privacy] needs versions that close whatever the data are: aggregation.trigger = "
                f"'{DEFAULT}' or 'clients'"
            )
    if made is not None:
        made.check(experiment)
