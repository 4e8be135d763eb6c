"""Admission of a client's update: its checks, its steps undone, its norms, in one verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fluffle.aggregator.coordinator.admission import (
    UPDATE_CHECKS,
    Moment,
    Rules,
    first_reason,
    restored,
)
from fluffle.aggregator.coordinator.buffer import Buffer
from fluffle.aggregator.coordinator.effects import Checkpoint, Fold
from fluffle.aggregator.coordinator.norms import Recent, norms_of
from fluffle.aggregator.coordinator.turns import Turns
from fluffle.aggregator.strategies.base import model_of
from fluffle.schemas import ClientUpdate, Experiment, Run


@dataclass(frozen=True, slots=True)
class Admitted:
    """An update to be folded, as it was before its client's steps."""

    update: ClientUpdate
    #: The length of each group of its tensors, where ``admission.norm_factor`` asks for it.
    norms: Mapping[str, float]


class UpdateAdmission:
    """Judges clients' updates by the rules of a run and by those that it has admitted."""

    def __init__(
        self, experiment: Experiment, run: Run, sends: str, checkpoint: Checkpoint
    ) -> None:
        self.rules = Rules(
            run,
            sends,
            experiment.task.clients,
            experiment.residents,
            experiment.max_staleness,
            experiment.update or (),
        )
        #: Of each resident, the newest version that an admitted update of its was trained from.
        self.residents = dict(checkpoint.residents)
        self.recent = Recent(experiment.admission, checkpoint.recent)
        self._measures = experiment.admission.norm_factor > 0

    def judge(
        self, update: ClientUpdate, version: int, running: bool, buffer: Buffer, turns: Turns
    ) -> Admitted | str:
        """The update as it counts from now on, or the reason for rejecting it."""
        expected, most = buffer.expected, self.recent.most_examples()
        moment = Moment(version, running, expected, turns, self.residents, most)
        reason = first_reason(UPDATE_CHECKS, update, self.rules, moment)
        if reason is not None:
            return reason
        update, reason = restored(update, self.rules.steps, expected)
        if reason is not None:
            return reason
        norms: dict[str, float] = {}
        if self._measures:
            model = model_of(buffer.state)
            norms = norms_of(update.tensors, model, self.rules.sends)
            if self.recent.too_long(norms, update.tensors, model):
                return "too_long"
        if not update.client.isdecimal():
            self.residents[update.client] = update.base_version
        return Admitted(update, norms)

    def close_version(self, folds: Sequence[Fold]) -> None:
        """A version has been made of these: the next updates are held against them too."""
        self.recent.add(folds)
