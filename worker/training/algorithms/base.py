"""A client's algorithm: what one client does in its turn besides plain local training.

One small class, in the trainer's compiled loop::

    before(turn) ─> given ─┐   NumPy, once a turn: from the client's state and what was broadcast
    phases(epochs)                     while it is traced: which weights stay as they are, and when
    loss(model, batch, context)        in the graph, every step; by default the task's loss
    gradients(gradients, context)      in the graph, every step; by default as they are
    after(turn, local) ─> After        NumPy, once a turn: groups that go up, and what is kept

A toy, FedProx with its term in the loss::

    class Near(fluffle.Algorithm):
        def __init__(self, mu: float = 0.1) -> None:
            self.mu = mu

        def loss(self, model, batch, context):
            pull = sum(tf.reduce_sum((w - b) ** 2) for w, b in zip(context.weights, context.base))
            return context.task_loss(batch) + self.mu / 2 * pull

Chosen with ``[training] algorithm = "my_file.py:Near"`` and ``[training.algorithm_parameters]``,
or by a strategy that asks for it. One object for each trainer, which works for one client at a
time: what a client keeps goes through ``turn.state`` and ``After.keep``, and is exact through
crashes (``fluffle.worker.services.client_state``). Code never travels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fluffle.schemas import Plan, Tensors
from fluffle.schemas.tensors import Array

if TYPE_CHECKING:
    from fluffle.worker.training.context import Context

#: Named lists of arrays, which the graph finds as ``context["name"]``.
Given = Mapping[str, Sequence[Array]]


class Batch(NamedTuple):
    """Examples of one step, as tensors; the first axis counts them."""

    x: Any
    y: Any
    #: How much each counts in the loss, where they differ in that.
    weight: Any = None


class Phase(NamedTuple):
    """Epochs of a turn in which one group of weights is trained, and all else stays as it is."""

    epochs: int
    #: The client's own weights (``[weights] keep``), or those that travel.
    trains: Literal["keep", "send"]


@dataclass(frozen=True)
class Turn:
    """One client's turn, outside the graph."""

    plan: Plan
    client: str
    #: The global model, and what the strategy broadcast with it.
    base: Tensors
    #: What the client kept from its last turn: empty at first, None where it is lost.
    state: Tensors | None
    #: Steps of the optimizer that the local training has.
    steps: int
    #: ``local_training(start, given)``: one more training like this turn's, from other weights.
    local_training: Callable[[Tensors, Given], Tensors]
    #: The gradient of the mean loss over all of the client's examples, at the global model.
    full_gradient: Callable[[], list[Array]]


@dataclass(frozen=True)
class After:
    """What a turn leaves behind."""

    #: Groups that go up with the update: those that the strategy wants.
    send: Tensors = field(default_factory=dict)
    #: What the client keeps for its next turn.
    keep: Tensors = field(default_factory=dict)


class Algorithm:
    """Plain local training, from which every other algorithm differs in what it overrides."""

    def before(self, turn: Turn) -> Given:
        """What the graph is given in this turn: always the same names, shapes and dtypes."""
        return {}

    def phases(self, epochs: int) -> Sequence[Phase]:
        """The phases of a turn of so many epochs, which add up to these; none where all weights
        are trained throughout. With phases the plan needs ``[weights] keep``.
        """
        return ()

    def loss(self, model: Any, batch: Batch, context: Context) -> Any:
        """The loss of a batch, a scalar tensor; called while the loop is traced."""
        return context.task_loss(batch)

    def gradients(self, gradients: Sequence[Any], context: Context) -> Sequence[Any]:
        """The gradients that the optimizer takes, None where the loss does not depend on a weight;
        called while the loop is traced.
        """
        return gradients

    def personal_model(self, kept: Tensors) -> Tensors:
        """The client's own model within what it keeps, named as the global one; none by default.
        It is what ``evaluation.by_client`` measures of the client, and what is exported of it.
        """
        return {}

    def after(self, turn: Turn, local: Tensors) -> After:
        """What follows from ``local``, the model that came of the training."""
        return After()
