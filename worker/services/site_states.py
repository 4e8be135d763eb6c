"""A site's own state between its turns: personal layers, what its optimizer remembers.

A pooled client may come to any worker, so the server names the state that a turn goes on from
(``fluffle.worker.services.client_state``). A site alone has its state, and needs no word from
anybody::

    state(v, a) = what training version v, attempt a, made of the newest state before (v, a)

    load(v, a) ─> train ─> save(v, a), durable ─> submit (confirmed)
                     a                         b
    killed at a     nothing was made; the turn is trained from the same state as before
    killed at b     the same: trained again, to the very same state and update, which counts once
    versions that it missed     left no state: it goes on from the last that there is
    rejected or lost update     its state stays: the training was done
    the run goes on from before (a restored ledger)     what was made after that turn is dropped

So a state is a function of the turns that the site did, however often it was killed in between.
"""

from __future__ import annotations

from fluffle.schemas import Tensors
from fluffle.worker.services.client_state import ClientStates

#: (version, attempt)
Attempt = tuple[int, int]


class SiteStates:
    """The states of one site in one run, in files that hold before an update is sent."""

    def __init__(self, states: ClientStates, run_id: str, client: str) -> None:
        self._states = states
        self._run_id = run_id
        self._client = client

    def load(self, turn: Attempt) -> Tensors | None:
        """What this turn goes on from: empty before the first, None where it is lost.

        Raises: UserError where it cannot be read.
        """
        before = self._before(turn)
        return None if before is None else self._states.load(self._run_id, self._client, before)

    def save(self, turn: Attempt, state: Tensors) -> None:
        """Keep what this turn made. Again is as good as once. Raises: UserError."""
        name, after = _name(turn), self._before(turn) or ""
        for old, made_from in self._kept().items():
            if _turn(old) > turn or (old == name and made_from != after):
                self._states.drop(self._run_id, self._client, old)
        self._states.save(self._run_id, self._client, name, state, after)

    def _before(self, turn: Attempt) -> str | None:
        kept = self._kept()
        older = [_turn(name) for name in kept if _turn(name) < turn]
        if older:
            return _name(max(older))
        return "" if all(made_from == "" for made_from in kept.values()) else None

    def _kept(self) -> dict[str, str]:
        return self._states.names(self._run_id, self._client)


def _name(turn: Attempt) -> str:
    version, attempt = turn
    return f"v{version}.{attempt}"


def _turn(name: str) -> Attempt:
    version, _, attempt = name[1:].partition(".")
    return int(version), int(attempt)
