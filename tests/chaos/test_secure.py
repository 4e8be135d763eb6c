"""Secure aggregation in every order: leaders, helpers and clients that die, and messages that wait.

A schedule is a list of small steps that hypothesis draws and makes smaller where one goes wrong.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.verify import verify
from fluffle.helper.ledger import HelperLedger
from tests.aggregator.test_masked import Ward, experiment

#: send: a client answers. lead: all that is there is taken in. help: a request is answered. wait:
#: past the deadline. lead dies, help
#: dies: without a word, and another comes. nobody: a client takes its turn and dies.
Step = Literal["send", "nobody", "lead", "help", "wait", "lead dies", "help dies"]
STEPS: tuple[Step, ...] = (
    *("send", "send", "send", "nobody", "lead", "lead", "help", "wait", "lead dies", "help dies"),
)
#: So often everybody does what is due before a run has to be over.
_ENDINGS = 60


def happen(ward: Ward, step: Step) -> None:
    match step:
        case "send" | "nobody":
            turns = ward.worker.receive_assignment(0.0)
            if turns is not None:
                ward.answer(turns, step == "send")
        case "lead":
            ward.settle()
        case "help":
            ward.helper.pump(0.0)
        case "wait":
            ward.now += 7.0
        case "lead dies":
            ward.crash()
            ward.start(settle=False)
        case "help dies":
            ward.helper_dies()


@given(st.lists(st.sampled_from(STEPS), min_size=8, max_size=30))
@settings(max_examples=100, deadline=None)
def test_no_id_is_unmasked_twice_and_no_buffer_is_lost_whatever_happens(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # Given a run of six clients, with a deadline that may close a buffer of three
        tables = {
            "aggregation": {"quorum": 4, "deadline_s": 5.0, "hold_s": 3.0},
            "participation": {"assignment_deadline_s": 20.0},
        }
        ward = Ward(Path(folder), experiment(**tables))

        # When anything happens, and then everybody does what is due
        for step in steps:
            if ward.service.outcome is None:
                happen(ward, step)
        for _ in range(_ENDINGS):
            if ward.service.outcome is not None:
                break
            for step in ("send", "send", "send", "lead", "help", "lead", "wait"):
                happen(ward, step)
            ward.settle(helps=True)

        # Then the run is over, each counted update was unmasked in the one set of its version,
        # and no other ever was
        assert ward.service.outcome == "finished"
        ward.crash()
        ward.helper.close()
        with (
            closing(LedgerReader(ward.folder / "run")) as ledger,
            closing(HelperLedger(ward.folder / "helper")) as remembered,
        ):
            assert verify(ledger) == []
            counted = dict(
                ledger.query("SELECT update_id, version FROM updates WHERE disposition = 'counted'")
            )
            sets = remembered.unmasked()
            assert set(sets) == set(counted)
            assert len({(counted[i], sets[i]) for i in counted}) == 2
