"""The registry of strategies: those of this package, of installed plug-ins, and of a user's file.

A module of this package that declares ``Parameters`` with a name of their own is found by itself.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args, get_origin

import fluffle.aggregator.strategies
from fluffle.aggregator.mechanisms.noise import NoiseSource
from fluffle.aggregator.strategies.base import Asking, Parameters, Strategy, listener_of
from fluffle.aggregator.strategies.clipping import Adaptive
from fluffle.aggregator.strategies.custom import CustomParameters, custom_strategy
from fluffle.aggregator.strategies.masked import Masked
from fluffle.aggregator.strategies.plateau import Plateau
from fluffle.aggregator.strategies.private import Private
from fluffle.schemas import Experiment, UserError
from fluffle.schemas.extensions import STRATEGY


def make_strategy(experiment: Experiment, code: Path | None = None) -> Strategy:
    """The strategy that an experiment's ``aggregation`` table asks for, of masked updates where
    there is ``[secure_aggregation]``; ``[privacy]`` comes on top.

    code: the folder of a strategy from a file; by default the present one.
    Raises: UserError for one that cannot be loaded, or does not go with the rest.
    """
    table = experiment.aggregation
    assert isinstance(table, Parameters)
    if isinstance(table, CustomParameters):
        strategy = custom_strategy(table.strategy, code or Path(), table.parameters or {})
    else:
        strategy = table.make(experiment)
    if table.plateau_patience is not None:
        if isinstance(strategy, Asking):
            raise UserError(
                f"aggregation.plateau_patience does not go with {table.strategy}, whose step moves "
                "more than the model"
            )
        strategy = Plateau(strategy, table.plateau_patience, table.plateau_factor)
    if table.deterministic and listener_of(strategy) is not None:
        raise UserError(
            "a strategy that decides by evaluations does not go with aggregation.deterministic: "
            "when one comes is no function of the seed"
        )
    if experiment.update and strategy.sends == "weights":
        raise UserError(
            f"[[update]] works on deltas, and {table.strategy} wants weights: "
            "choose another aggregation.strategy, such as fedbuff"
        )
    return Masked.around(strategy, experiment)


def protected(
    strategy: Strategy,
    experiment: Experiment,
    noise: NoiseSource,
    column: tuple[float, ...] = (1.0,),
) -> Strategy:
    """The strategy with the experiment's ``[privacy]``, if it has one.

    noise, column: as ``fluffle.aggregator.ledger.privacy.noise_of`` has them for a run.
    """
    table = experiment.privacy
    if table is None:
        return strategy
    expected = None
    if experiment.samples_secretly:
        expected = experiment.participation.sampling_rate * experiment.task.clients
    adaptive = None
    if table.clip_quantile is not None:
        bit_noise = table.clip_bit_noise or max(experiment.quorum / 20, table.noise_multiplier)
        adaptive = Adaptive(table.clip_quantile, table.clip_rate, bit_noise)
    return Private(
        strategy,
        table.clip_norm,
        table.noise_multiplier,
        noise,
        column,
        by_tensor=table.clip_by == "tensor",
        adaptive=adaptive,
        expected=expected,
    )


@cache
def strategies() -> Mapping[str, type[Parameters]]:
    """The parameters of every strategy of this package, by the strategy's name."""
    package = fluffle.aggregator.strategies
    modules = [m.name for m in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")]
    return {n: p for m in modules if m != __name__ for n, p in _declared(import_module(m))}


def parameters_of(name: str) -> type[Parameters]:
    """What the strategy of this name takes. Raises: ValueError for one that nobody knows."""
    if found := strategies().get(name):
        return found
    STRATEGY.check_name("aggregation.strategy", name, strategies())
    found = STRATEGY.plugin(name)
    if inspect.isclass(found) and issubclass(found, Parameters):
        return found
    return CustomParameters


def _declared(module: ModuleType) -> Iterator[tuple[str, type[Parameters]]]:
    for made in vars(module).values():
        if inspect.isclass(made) and issubclass(made, Parameters):
            kind = made.model_fields["strategy"].annotation
            if made.__module__ == module.__name__ and get_origin(kind) is Literal:
                yield get_args(kind)[0], made
