"""The entry into a run: a new one, or one to resume; and the beginning of an epoch."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fluffle.aggregator.ledger.arithmetic import arithmetic
from fluffle.aggregator.ledger.database import Database, StaleLeader
from fluffle.aggregator.ledger.leftovers import refuse_newer, refuse_without_run
from fluffle.aggregator.ledger.privacy import new_secrets
from fluffle.aggregator.ledger.same_run import difference_of
from fluffle.schemas import Experiment, UserError


class RunEntry(Database):
    """A ledger whose run can be entered and led."""

    #: Epoch and status when this ledger entered the run.
    _entered: tuple[str, str] | None = None

    def open_run(
        self,
        experiment: Experiment,
        run_id: str,
        run_started: int,
        clock: str = "real",
        code: Path | None = None,
    ) -> bool:
        """Enter a new run, or check that the folder holds one of this experiment and clock.

        code: the folder of a mechanism of one's own.
        True if there is something left to do: the run is not finished, or now stops later.
        Raises: UserError where it holds another experiment's, or files that its ledger has
        forgotten.
        """
        document = experiment.model_dump(mode="json")
        # One transaction: of two aggregators that start at once the second finds the first's run,
        # and must not begin its epochs anew.
        with self._transaction(check=False):
            stored = self._stored_experiment()
            if stored is None:
                refuse_without_run(self.folder)
            else:
                self._check_same(stored, document, clock)
                refuse_newer(self.folder, self.latest_version(), int(self.meta["epoch"]))
            self._set(experiment=json.dumps(document))
            if stored is None:
                self._set(clock=clock)
                self._set(run_id=run_id, run_started=run_started, epoch=0, status="running")
                self._set(created_at=time.time())
                if experiment.privacy is not None:
                    self._set(**new_secrets(experiment, clock, code))
            self._entered = self.meta["epoch"], self.meta["status"]
        finished = self.meta["status"] == "finished"
        return not finished or stored != document

    def lead(self, newer_than: int | None = None, epoch_above: int = 0) -> None:
        """Begin an epoch: whoever led before can commit no more. A run that had ended goes on.

        Raises: StaleLeader where another led since ``open_run``, which may have ended the run.
        ``newer_than`` is the ``run_started`` of the newest model of another run on this broker;
        ours has to be larger, or workers would take us for the past. So has our epoch than
        ``epoch_above``, that of this run's newest model there: this ledger may be a restored one.
        """
        with self._transaction(check=False):
            meta = self.meta
            if self._entered not in (None, (meta["epoch"], meta["status"])):
                raise StaleLeader(f"epoch {meta['epoch']} has begun meanwhile")
            self.epoch = max(int(meta["epoch"]), epoch_above) + 1
            self._set(epoch=self.epoch, status="running", detail="")
            known = json.loads(self.meta.get("arithmetic", "[]"))
            if arithmetic() not in known:
                self._set(arithmetic=json.dumps([*known, arithmetic()]))
            if newer_than is not None and newer_than >= int(self.meta["run_started"]):
                self._set(run_started=newer_than + 1)
        self._entered = None

    def _check_same(self, stored: dict[str, Any], document: dict[str, Any], clock: str) -> None:
        """Raises: UserError where the folder holds another experiment's run, or clock's."""
        difference = difference_of(stored, document)
        if difference:
            raise UserError(
                f"{self.folder} holds a run of another experiment ({difference} differs): "
                "choose another --out, or the experiment file that it was started with"
            )
        if self.meta.get("clock", clock) != clock:
            raise UserError(
                f"{self.folder} holds a run under the {self.meta['clock']} clock: choose "
                "another --out, or the same --clock"
            )

    def _stored_experiment(self) -> dict[str, Any] | None:
        """The run's experiment with every key that there is by now; None before a run."""
        text = self.meta.get("experiment")
        if text is None:
            return None
        try:
            return Experiment.stored(text).model_dump(mode="json")
        except ValidationError as error:
            raise UserError(
                f"{self.folder} holds a run of another version of Fluffle, whose experiment this "
                f"one does not understand: choose another --out ({error.errors()[0]['msg']})"
            ) from error
