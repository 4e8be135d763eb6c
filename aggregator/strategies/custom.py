"""A strategy of one's own: a class in a Python file beside the experiment file.

It is made with the experiment's ``[aggregation.parameters]`` as keyword arguments. What it raises,
and what it returns that is no state, ends the run with one line: it is its author's to mend.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from fluffle.aggregator.strategies.base import (
    Asking,
    Evaluating,
    Parameters,
    State,
    Strategy,
    model_of,
)
from fluffle.schemas import ClientUpdate, Experiment, Tensors, UserError, user_code
from fluffle.schemas.algorithms import Asks
from fluffle.schemas.extensions import STRATEGY
from fluffle.schemas.table import Parameters as KeywordArguments
from fluffle.schemas.tensors import DTYPES, NAME, spec
from fluffle.schemas.user_code import explain, load_class, place_of

#: Where a run folder keeps the file that it was made with.
CODE = "code"


class CustomParameters(Parameters):
    """A strategy from a file or an installed package."""

    #: What the class is made with: its keyword arguments.
    parameters: KeywordArguments | None = None

    def make(self, experiment: Experiment) -> Strategy:
        """The strategy of a file in the present folder."""
        return custom_strategy(self.strategy, Path(), self.parameters or {})


def custom_strategy(name: str, folder: Path, parameters: Mapping[str, Any]) -> Strategy:
    """The strategy of an installed package, or ``FILE.py:Class`` of this folder.

    Raises: UserError.
    """
    made = user_code.given(name, "strategy") or STRATEGY.plugin(name)
    if made is None:
        path, class_name = place_of(name, folder)
        made = load_class(path, class_name)
    elif inspect.isclass(made):
        path, class_name = user_code.file_of(made), made.__name__
    else:
        raise UserError(f"the strategy {name} of an installed package is no class")
    missing = [verb for verb in ("init", "accept", "step") if not _defines(made, verb)]
    if missing:
        raise UserError(f"{class_name} in {path.name} lacks {', '.join(missing)}: see Strategy")
    try:
        strategy = made(**parameters)
    except Exception as error:
        raise UserError(
            f"cannot make the strategy with [aggregation.parameters]: {explain(error, path)}"
        ) from error
    if getattr(strategy, "sends", None) not in ("delta", "weights"):
        raise UserError(f"{class_name} in {path.name} lacks sends = 'delta' or 'weights'")
    return (CustomStrategy if not isinstance(strategy, Asking) else AskingCustomStrategy)(
        strategy, path
    )


def keep_code(name: str, folder: Path, run_folder: Path) -> None:
    """Copy the strategy's file into the run folder, unless it was there at the run's start.

    Of a class that a process was given itself its text, for people; where there is any.
    """
    made = user_code.given(name, "strategy")
    path = place_of(name, folder)[0] if made is None else Path(f"{made.__name__}.py")
    kept = run_folder / CODE / path.name
    if kept.exists():
        return
    kept.parent.mkdir(exist_ok=True)
    if made is None:
        shutil.copyfile(path, kept)
        return
    with suppress(OSError, TypeError):
        kept.write_text(inspect.getsource(made), encoding="utf-8")


class CustomStrategy:
    """The user's strategy, watched."""

    def __init__(self, strategy: Strategy, path: Path) -> None:
        self.strategy = strategy
        self._path = path
        if isinstance(strategy, Evaluating):  # else this one listens to nothing, too
            self.on_evaluation = partial(self._on_evaluation, strategy)

    @property
    def sends(self) -> Literal["delta", "weights"]:
        """What clients send."""
        return self.strategy.sends

    def init(self, weights: Tensors) -> State:
        """The state at version 0."""
        return self._checked("init", lambda: self.strategy.init(weights), weights)

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """Fold one update into the buffer."""
        model = model_of(state)
        return self._checked(
            "accept", lambda: self.strategy.accept(state, update, staleness), model
        )

    def step(self, state: State) -> State:
        """Close the buffer."""
        return self._checked("step", lambda: self.strategy.step(state), model_of(state))

    def _on_evaluation(
        self, strategy: Evaluating, state: State, version: int, metrics: Mapping[str, float]
    ) -> State:
        """What the user's strategy makes of an evaluation."""
        return self._checked(
            "on_evaluation",
            lambda: strategy.on_evaluation(state, version, metrics),
            model_of(state),
        )

    def _checked(self, verb: str, work: Callable[[], State], model: Tensors) -> State:
        state = self._trying(work)
        what = f"{type(self.strategy).__name__}.{verb} in {self._path.name} returned"
        if not isinstance(state, dict):
            raise UserError(f"{what} {type(state).__name__}, not a dict of arrays")
        for key, array in list(state.items()):
            if not isinstance(key, str) or not NAME.fullmatch(key):
                raise UserError(
                    f"{what} the key {key!r}: use server/… or buffer/… in small letters"
                )
            if isinstance(array, np.generic):  # what arithmetic makes of arrays of no dimension
                array = state[key] = np.asarray(array)
            if not isinstance(array, np.ndarray) or array.dtype.name not in DTYPES:
                raise UserError(f"{what} no array of numbers as {key}")
        given, found = spec(model), spec(model_of(state))
        if given != found:
            wrong = next(k for k in {**given, **found} if given.get(k) != found.get(k))
            raise UserError(
                f"{what} model/{wrong} as {found.get(wrong, 'nothing')}, not {given.get(wrong)}"
            )
        return state

    def _trying(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:
            raise UserError(f"the strategy failed: {explain(error, self._path)}") from error


class AskingCustomStrategy(CustomStrategy):
    """The user's strategy where it asks more of clients."""

    @property
    def asks(self) -> Asks:
        """What clients are asked for."""
        return self._inner.asks

    def broadcast(self, state: State) -> Tensors:
        """Groups that travel with the global model."""
        return cast(Tensors, self._trying(lambda: self._inner.broadcast(state)))

    def wants(self, model: Tensors) -> Tensors:
        """Groups that an update of this model has to bring."""
        return cast(Tensors, self._trying(lambda: self._inner.wants(model)))

    @property
    def _inner(self) -> Asking:
        assert isinstance(self.strategy, Asking)
        return self.strategy


def _defines(made: type, verb: str) -> bool:
    """Whether a class has a method of its own, not the protocol's empty one."""
    return callable(getattr(made, verb, None)) and getattr(made, verb) is not getattr(
        Strategy, verb
    )
