"""Stages of a turn: which weights an epoch trains, as the algorithm's phases say."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from fluffle.schemas import UserError
from fluffle.worker.training.algorithms.base import Phase


@dataclass(frozen=True)
class Stage:
    """So many epochs, in which the weights at ``still`` stay as they are."""

    epochs: int
    #: Positions in the order in which weights travel: trainable ones, then the others.
    still: frozenset[int] = frozenset()

    def trained(self, parameters: Sequence[Any]) -> list[Any]:
        """Those of the trainable weights that are trained."""
        return [v for i, v in enumerate(parameters) if i not in self.still]

    def spread(self, gradients: Sequence[Any], parameters: int) -> list[Any]:
        """A gradient for each of so many trainable weights, None for those that stay."""
        left = iter(gradients)
        return [None if i in self.still else next(left) for i in range(parameters)]

    @contextmanager
    def untrained_have_no_gradient(self) -> Iterator[None]:
        """Keras warns of weights without a gradient; here that is on purpose."""
        with warnings.catch_warnings():
            if self.still:
                warnings.filterwarnings("ignore", "Gradients do not exist")
            yield

    def held(self, weights: Sequence[Any]) -> list[tuple[Any, Any]]:
        """In the graph: what stays, and its values; a training moves statistics all the same."""
        return [(v, tf.identity(v.value)) for i, v in enumerate(weights) if i in self.still]


def stages_of(
    phases: Sequence[Phase], epochs: int, groups: Sequence[str] | None, parameters: int
) -> list[Stage]:
    """The stages of a turn of so many epochs.

    groups: of each weight, what ``[weights]`` says; the first ``parameters`` are trainable.
    Raises: UserError where the phases do not fit.
    """
    if not phases:
        return [Stage(epochs)]
    if any(phase.epochs < 1 for phase in phases) or sum(p.epochs for p in phases) != epochs:
        raise UserError(
            f"the phases of the algorithm have {', '.join(str(p.epochs) for p in phases)} epochs, "
            f"and training.epochs = {epochs}: each has one or more, and together they are these"
        )
    stages = []
    for phase in phases:
        trained = [i for i, group in enumerate(groups or ()) if group == phase.trains]
        if not any(i < parameters for i in trained):
            raise UserError(
                f"the algorithm trains what [weights] {phase.trains} names in a phase of its own, "
                "and no trainable weight is there"
            )
        still = frozenset(range(len(groups or ()))) - frozenset(trained)
        stages.append(Stage(phase.epochs, still))
    return stages
