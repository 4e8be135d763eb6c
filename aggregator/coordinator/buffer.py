"""The open buffer: the strategy's state, and which of its updates the ledger already knows.

Deterministic cohorts fold in client order whatever the order of arrival: updates that came early
wait. They are folded when the buffer closes, since only then is the order known for certain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fluffle.aggregator.coordinator.effects import Checkpoint, Fold
from fluffle.aggregator.coordinator.selection import client_order
from fluffle.aggregator.strategies.base import State, Strategy, model_of, told, update_spec
from fluffle.aggregator.strategies.masked import Masked
from fluffle.aggregator.triggers.base import Held
from fluffle.schemas import ClientUpdate, Tensors
from fluffle.schemas.masking import Member, Words
from fluffle.schemas.tensors import Spec


class Buffer:
    """Updates folded since the last version. Owns the state; nobody else may keep its arrays."""

    def __init__(
        self, strategy: Strategy, checkpoint: Checkpoint, in_client_order: bool, quorum: int
    ) -> None:
        self._strategy = strategy
        self._masked = strategy if isinstance(strategy, Masked) else None
        self._state = checkpoint.state
        self._in_client_order = in_client_order
        self._waiting = {update.update_id: update for update in checkpoint.waiting}
        self._recorded = list(checkpoint.buffered)
        self._fresh: list[Fold] = []
        self._quorum = quorum
        self._examples = sum(fold.examples for fold in self._recorded)
        self._clients = {fold.client for fold in self._recorded}
        #: What the last version was made of.
        self.closed: list[Fold] = []
        #: What an update must look like; nothing does before version 0.
        self.expected: Spec = {}
        if self._state is not None:
            self.expected = update_spec(strategy, model_of(self._state))

    @property
    def state(self) -> State:
        """The strategy's state. Raises: RuntimeError before version 0."""
        if self._state is None:
            raise RuntimeError("there are no weights yet")
        return self._state

    @property
    def size(self) -> int:
        """How many updates are in the buffer."""
        return len(self._recorded) + len(self._fresh)

    @property
    def held(self) -> Held:
        """What is in the buffer, for the trigger."""
        return Held(self._quorum, self.size, self._examples, self._clients)

    @property
    def unrecorded(self) -> int:
        """How many of them the ledger does not know yet."""
        return len(self._fresh)

    @property
    def waiting(self) -> list[ClientUpdate]:
        """Updates that wait for their place in client order."""
        return list(self._waiting.values())

    @property
    def clients(self) -> list[str]:
        """Who has contributed."""
        return [fold.client for fold in (*self._recorded, *self._fresh)]

    def start(self, weights: Tensors) -> None:
        """Version 0."""
        self._state = self._strategy.init(weights)
        self.expected = update_spec(self._strategy, weights)

    def add(self, update: ClientUpdate, fold: Fold) -> None:
        """Take in one update."""
        self._fresh.append(fold)
        self._examples += fold.examples
        self._clients.add(fold.client)
        if self._in_client_order:
            self._waiting[update.update_id] = update
        else:
            self._state = self._strategy.accept(self.state, update, fold.staleness)

    @property
    def awaits_masks(self) -> bool:
        """Whether it was closed with its updates under masks."""
        masked = self._masked
        return masked is not None and self._state is not None and masked.is_closed(self._state)

    def close(self) -> None:
        """Take no more: from now on it is about the sum of these, whoever leads."""
        assert self._masked is not None
        self._state = self._masked.close(self.state)

    def members(self) -> list[Member]:
        """Whose masks are in the buffer's sum."""
        assert self._masked is not None
        folds = [*self._recorded, *self._fresh]
        pairs = zip(folds, self._masked.members(self.state), strict=True)
        return [Member(f.update_id, f.client, weight, seal) for f, (weight, seal) in pairs]

    def words(self) -> int:
        """How long the sum of the masks has to be."""
        assert self._masked is not None
        return self._masked.words(self.state)

    def unmask(self, masks: Words) -> None:
        """The sum, by that of the masks."""
        assert self._masked is not None
        self._state = self._masked.unmask(self.state, masks)

    def record(self) -> list[Fold]:
        """The folds that the ledger does not know yet; from now on it does."""
        fresh, self._fresh = self._fresh, []
        self._recorded += fresh
        return fresh

    def step(self, evaluations: Sequence[tuple[int, Mapping[str, float]]] = ()) -> list[Fold]:
        """Close the buffer: the next version's state, and the folds not yet recorded.

        evaluations: those that the strategy has not been told of.
        """
        self.closed = [*self._recorded, *self._fresh]
        staleness = {fold.update_id: fold.staleness for fold in self.closed}
        for update in sorted(self._waiting.values(), key=lambda u: client_order(u.client)):
            self._state = self._strategy.accept(self.state, update, staleness[update.update_id])
        self._state = told(self._strategy, self.state, evaluations)
        self._state = self._strategy.step(self.state)
        return self._clear()

    def abandon(self) -> list[Fold]:
        """The run is over: the folds not yet recorded of a buffer that never closed."""
        return self._clear()

    def _clear(self) -> list[Fold]:
        fresh, self._fresh, self._recorded, self._waiting = self._fresh, [], [], {}
        self._examples, self._clients = 0, set()
        return fresh
