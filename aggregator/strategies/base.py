"""A strategy: three pure functions on a dict of arrays (after FedJAX), and its parameters.

The state's keys tell what an array is for:

- ``model/<group>/<i>``: the global model, in the dtypes of the Keras model;
- ``server/…``: what a server optimizer keeps between versions;
- ``cache/<entry>/…``: what is kept for one client each; replaced, never changed in place, so that
  the ledger writes only what is new;
- ``buffer/…``: float64 sums over the updates folded since the last version. A state without
  ``buffer/`` keys has an empty buffer.

Pure: no I/O, no clock, no randomness, same inputs same outputs. ``accept`` owns the state that it
is handed and may add into its sums in place; nobody else keeps a reference to it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Literal, Protocol, runtime_checkable

from fluffle.schemas import ClientUpdate, Experiment, Tensors
from fluffle.schemas.aggregation import AggregationTable
from fluffle.schemas.algorithms import Asks
from fluffle.schemas.tensors import Spec, spec

State = Tensors


class Strategy(Protocol):
    """How updates become the next version.

    The mean of the deltas, as a toy:

    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> class Mean:
    ...     sends = "delta"
    ...     def init(self, weights):
    ...         return {f"model/{key}": array for key, array in weights.items()}
    ...     def accept(self, state, update, staleness):
    ...         state["buffer/n"] = state.get("buffer/n", np.array(0.0)) + 1
    ...         for key, delta in update.tensors.items():
    ...             state[f"buffer/{key}"] = state.get(f"buffer/{key}", 0.0) + delta.astype(float)
    ...         return state
    ...     def step(self, state):
    ...         return {f"model/{key}": (array + state[f"buffer/{key}"] / state["buffer/n"])
    ...                 .astype(array.dtype) for key, array in model_of(state).items()}
    >>> strategy, state = Mean(), Mean().init({"trainable/0": np.zeros(2, np.float32)})
    >>> for delta in ([1, 2], [3, 4]):
    ...     sent = SimpleNamespace(tensors={"trainable/0": np.array(delta, np.float32)})
    ...     state = strategy.accept(state, sent, 0)
    >>> strategy.step(state)
    {'model/trainable/0': array([2., 3.], dtype=float32)}
    """

    @property
    def sends(self) -> Literal["delta", "weights"]:
        """What clients send of ``trainable`` tensors (``non_trainable`` are always values)."""
        ...

    def init(self, weights: Tensors) -> State:
        """The state at version 0."""
        ...

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """Fold one update, ``staleness`` versions old, into the buffer."""
        ...

    def step(self, state: State) -> State:
        """Close the buffer: the state of the next version, its buffer empty."""
        ...


class Parameters(AggregationTable):
    """``[aggregation]`` as one strategy takes it: the keys of all, and its own.

    A class in a module of this package whose ``strategy`` is one ``Literal`` is registered by that
    name: nothing else has to be touched.
    """

    @abstractmethod
    def make(self, experiment: Experiment) -> Strategy:
        """The strategy that these parameters describe."""


@runtime_checkable
class Asking(Protocol):
    """What a strategy has besides, where clients send more than the model's update."""

    @property
    def asks(self) -> Asks:
        """What clients are asked for; it travels in the plan."""
        ...

    def broadcast(self, state: State) -> Tensors:
        """Groups that travel with the global model."""
        ...

    def wants(self, model: Tensors) -> Tensors:
        """Groups that an update of this model has to bring, as tensors of that dtype and shape."""
        ...


@runtime_checkable
class Reshaping(Protocol):
    """What a strategy has besides, where updates have other tensors than the model."""

    def update_spec(self, model: Tensors) -> Spec:
        """What an update of this model has to look like."""
        ...


@runtime_checkable
class Evaluating(Protocol):
    """What a strategy has besides, where it decides by evaluations.

    They are told in order of their versions, each version once, when the next version is about to
    be made, after its updates were folded; the ledger keeps with which version that was.
    """

    def on_evaluation(self, state: State, version: int, metrics: Mapping[str, float]) -> State:
        """The state, now that this version has been measured. Pure, as the others."""
        ...


def listener_of(strategy: Strategy) -> Evaluating | None:
    """Who of a strategy, and those that it is around, wants to hear of evaluations."""
    if isinstance(strategy, Evaluating):
        return strategy
    inner: Strategy | None = getattr(strategy, "inner", None)
    return None if inner is None else listener_of(inner)


def told(
    strategy: Strategy, state: State, evaluations: Iterable[tuple[int, Mapping[str, float]]]
) -> State:
    """The state after these evaluations, each a version and its metrics."""
    listener = listener_of(strategy)
    if listener is not None:
        for version, metrics in evaluations:
            state = listener.on_evaluation(state, version, metrics)
    return state


def asks_of(strategy: Strategy) -> Asks | None:
    """What a strategy asks of clients besides the model's update."""
    return strategy.asks if isinstance(strategy, Asking) else None


def broadcast_of(strategy: Strategy, state: State) -> Tensors:
    """What travels as the global model: the model, and what the strategy adds."""
    model = model_of(state)
    return {**model, **strategy.broadcast(state)} if isinstance(strategy, Asking) else model


def update_spec(strategy: Strategy, model: Tensors) -> Spec:
    """What an update must look like."""
    if isinstance(strategy, Reshaping):
        return strategy.update_spec(model)
    return spec({**model, **strategy.wants(model)} if isinstance(strategy, Asking) else model)


def model_of(state: State) -> Tensors:
    """The global model of a state."""
    return {k.removeprefix("model/"): a for k, a in state.items() if k.startswith("model/")}
