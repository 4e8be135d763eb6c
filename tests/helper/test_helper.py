"""The helper: what it answers, what it refuses, and that no crash makes it answer twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fluffle.broker import Envelope
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.helper.ledger import HelperLedger
from fluffle.helper.service import HelperService, check_helper_key, own_helper, working
from fluffle.schemas import Experiment, Masks, Message, Run, UnmaskRequest, UserError, encode
from fluffle.schemas.masking import Member, Sealed, info, mask_sum, seal

WORDS = 7
RUN = Run(run_id="ward-1", run_started=1, epoch=1)
EXPERIMENT = Experiment.model_validate(
    {
        "experiment": {"name": "ward"},
        "secure_aggregation": {"min_clients": 3, "max_weight": 4},
        "admission": {"norm_factor": 0},
    }
)


class Helped:
    """An aggregator's port, and a helper in this folder."""

    def __init__(self, folder: Path) -> None:
        self.broker = EmbeddedBroker()
        self.port = self.broker.aggregator()
        self.port.lead(0.0)
        self.helper = HelperService(EXPERIMENT, self.broker.helper(), folder)

    def ask(self, request: Message) -> Masks | None:
        self.port.ask_helper(Envelope.of(request))
        assert self.helper.pump(1.0)
        answer = self.port.receive_masks(0.0)
        message = answer.message() if answer else None
        assert message is None or isinstance(message, Masks)
        return message


@pytest.fixture
def helped(tmp_path: Path) -> Iterator[Helped]:
    made = Helped(tmp_path)
    yield made
    made.helper.close()


def member(key: str, turn: int, weight: int = 1, run_id: str = "ward-1", fewest: int = 3) -> Member:
    update_id, client = f"{run_id}:{turn}:{turn % 10}", str(turn % 10)
    sealed = Sealed(run_id, WORDS, fewest, 4)
    seed = turn.to_bytes(32, "big")
    return Member(update_id, client, weight, seal(seed, key, info(sealed, update_id, client)))


def members(key: str, *turns: int) -> list[Member]:
    return [member(key, turn, 1 + turn % 4) for turn in turns]


def asked(members: list[Member], run: Run = RUN, words: int = WORDS) -> UnmaskRequest:
    return UnmaskRequest.of(run, 1, words, members)


def test_the_masks_of_a_set_are_summed_and_a_set_asked_again_is_answered_the_same(
    helped: Helped, tmp_path: Path
) -> None:
    # Given a set of three
    key = helped.helper.public_key
    three = members(key, 1, 2, 3)

    # When it is asked for, again by a later leader in another order, and again after a restart
    first = helped.ask(asked(three))
    again = helped.ask(asked(three[::-1], RUN.model_copy(update={"epoch": 2})))
    helped.helper.close()
    restarted = Helped(tmp_path)
    assert restarted.helper.public_key == key
    after = restarted.ask(asked(three))
    restarted.helper.close()

    # Then each time the answer is the weighted sum of these masks
    with closing(HelperLedger(tmp_path)) as ledger:
        expected = mask_sum(three, Sealed("ward-1", WORDS, 3, 4), ledger.private)
        assert set(ledger.unmasked()) == {m.update_id for m in three}
    for answer in (first, again, after):
        assert answer is not None
        assert answer.refused is None
        assert answer.request == asked(three).digest
        assert np.array_equal(answer.tensors["masks/words"], expected)


def test_an_update_is_unmasked_in_one_set_alone(helped: Helped) -> None:
    # Given a set that was unmasked
    key = helped.helper.public_key
    assert helped.ask(asked(members(key, 1, 2, 3))) is not None

    # When others with one of its updates are asked for, or the same with other weights
    other = helped.ask(asked(members(key, 3, 4, 5)))
    more = helped.ask(asked(members(key, 1, 2, 3, 4)))
    heavier = helped.ask(asked([m._replace(weight=4) for m in members(key, 1, 2, 3)]))

    # Then they are refused, and use nothing up
    for answer in (other, more, heavier):
        assert answer is not None
        assert "was unmasked in another set" in str(answer.refused)
        assert not answer.tensors
    fresh = helped.ask(asked(members(key, 4, 5, 6)))
    assert fresh is not None
    assert fresh.refused is None


def test_what_its_operator_does_not_allow_is_refused_and_uses_nothing_up(
    helped: Helped, tmp_path: Path
) -> None:
    key = helped.helper.public_key
    good = members(key, 1, 2, 3)
    foreign = Run(run_id="other-1", run_started=1, epoch=1)
    wrong = {
        "fewer than 3": asked(good[:2]),
        "named twice": asked([*good, good[0]]),
        "two updates": asked([*good, member(key, 11)]),
        "from 1 to 4": asked([*good[:2], good[2]._replace(weight=5)]),
        "from 1 to": asked([*good[:2], good[2]._replace(weight=0)]),
        "runs of ward": asked([member(key, n, run_id="other-1") for n in (1, 2, 3)], foreign),
        "does not open": asked(good, words=WORDS + 1),
        "seal does not": asked([*good[:2], member(key, 3, fewest=2)]),
        "a seal does": asked([*good[:2], good[2]._replace(seal=good[1].seal)]),
    }
    for said, request in wrong.items():
        answer = helped.ask(request)
        assert answer is not None
        assert said in str(answer.refused)
    with closing(HelperLedger(tmp_path)) as ledger:
        assert ledger.unmasked() == {}


def test_what_is_no_request_is_taken_away_without_an_answer(helped: Helped) -> None:
    # Given a message of another kind, bytes, and a set whose parts do not fit
    good = asked(members(helped.helper.public_key, 1, 2, 3))
    parts = dict(good.tensors)
    odd = [
        Masks(run=RUN, version=1, request="0" * 64, tensors={}),
        good.model_copy(update={"tensors": {}}),
        good.model_copy(update={"tensors": parts | {"members/weights": np.ones(2, np.int64)}}),
        good.model_copy(update={"tensors": parts | {"members/weights": np.ones(3)}}),
        good.model_copy(update={"tensors": parts | {"members/names": np.zeros(9, np.uint8)}}),
    ]
    for message in odd:
        assert helped.ask(message) is None
    helped.port.ask_helper(Envelope(b"no message"))
    assert helped.helper.pump(1.0)
    assert helped.port.receive_masks(0.0) is None

    # When a real one follows, then it is answered
    assert helped.ask(good) is not None


#: Kills itself without a goodbye when it is about to make this step.
_STEPS = ("_unmask", "record", "answer", "ack")
_VICTIM = """
import os, signal, sys
from pathlib import Path
from fluffle.broker.embedded import EmbeddedHelperPort
from fluffle.helper.ledger import HelperLedger
from fluffle.helper.service import HelperService
from fluffle.schemas import decode
from tests.helper.test_helper import Helped

step, when = sys.argv[2:]
owner = next(c for c in (HelperService, HelperLedger, EmbeddedHelperPort) if step in vars(c))
done = getattr(owner, step)

def die(*args):
    if when == "after":
        done(*args)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, step, die)
folder = Path(sys.argv[1])
Helped(folder).ask(decode((folder / "request").read_bytes()))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", _STEPS)
def test_killed_at_any_step_it_answers_this_set_or_another_never_both(
    tmp_path: Path, step: str, when: str
) -> None:
    # Given a helper that was killed while it worked on a set
    root = str(Path(__file__).parents[2])
    with closing(HelperLedger(tmp_path)) as ledger:
        key = ledger.public
    request = asked(members(key, 1, 2, 3))
    (tmp_path / "request").write_bytes(encode(request))
    words = [sys.executable, "-c", _VICTIM, str(tmp_path), step, when]
    killed = subprocess.run(words, cwd=root, env=os.environ | {"PYTHONPATH": root}, check=False)
    assert killed.returncode == -signal.SIGKILL

    # When it starts again, and is asked for an overlapping set before it is asked again
    recorded = (step, when) not in (("_unmask", "before"), ("record", "before"))
    helped = Helped(tmp_path)
    other = helped.ask(asked(members(key, 3, 4, 5)))
    first = helped.ask(request)

    # Then one of them is answered: the first where it was recorded, else whichever came first
    assert other is not None
    assert first is not None
    assert (other.refused is None) == (not recorded)
    assert (first.refused is None) == recorded
    helped.helper.close()


def test_a_helper_at_work_beside_a_run_answers_and_ends_with_it(tmp_path: Path) -> None:
    broker = EmbeddedBroker()
    port = broker.aggregator()
    port.lead(0.0)
    helper = own_helper(EXPERIMENT, broker, tmp_path)
    assert helper is not None
    with working(helper):
        port.ask_helper(Envelope.of(asked(members(helper.public_key, 1, 2, 3))))
        assert port.receive_masks(10.0) is not None


def test_runs_with_a_helper_of_their_own_and_runs_on_a_broker_are_told_apart(
    tmp_path: Path,
) -> None:
    secure = {"min_clients": 3, "helper_key": "0" * 64}
    named = Experiment.model_validate(
        {"secure_aggregation": secure, "admission": {"norm_factor": 0}}
    )
    with pytest.raises(UserError, match="leave it out"):
        own_helper(named, EmbeddedBroker(), tmp_path)
    with pytest.raises(UserError, match="fluffle helper FILE"):
        check_helper_key(EXPERIMENT)
    check_helper_key(named)
    check_helper_key(Experiment())
    assert own_helper(Experiment(), EmbeddedBroker(), tmp_path) is None


def test_a_folder_without_its_key_or_that_is_no_folder_is_refused_in_a_line(tmp_path: Path) -> None:
    HelperLedger(tmp_path / "one").close()
    assert (tmp_path / "one" / "helper.key").stat().st_mode & 0o077 == 0
    (tmp_path / "one" / "helper.key").unlink()
    with pytest.raises(UserError, match="is gone"):
        HelperLedger(tmp_path / "one")
    (tmp_path / "two").write_text("")
    with pytest.raises(UserError, match="of no use"):
        HelperLedger(tmp_path / "two")
    HelperLedger(tmp_path / "three").close()
    (tmp_path / "three" / "helper.key").write_bytes(b"short")
    with pytest.raises(UserError, match="is no key"):
        HelperLedger(tmp_path / "three")
