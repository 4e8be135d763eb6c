"""Secure aggregation in the aggregator: sums as without masks, one set for each buffer."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.service import AggregatorService
from fluffle.aggregator.strategies.base import model_of
from fluffle.aggregator.strategies.masked import Masked
from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.aggregator.verify import verify
from fluffle.broker import Delivery, Envelope
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.helper.ledger import HelperLedger
from fluffle.helper.service import HelperService
from fluffle.schemas import (
    Assignment,
    ClientUpdate,
    Experiment,
    GlobalModel,
    Masks,
    Plan,
    Run,
    Tensors,
    UnmaskRequest,
    UserError,
)
from fluffle.schemas.masking import Member, Sealed, mask, mask_sum, public_key
from fluffle.worker.services.outgoing import outgoing

RUN = Run(run_id="ward-1", run_started=1, epoch=1)
WEIGHTS: Tensors = {
    "trainable/0": np.linspace(-0.4, 0.4, 12, dtype=np.float32).reshape(3, 4),
    "trainable/1": np.zeros(5),
    "non_trainable/0": np.ones(3, np.float32),
}
WORDS = 20
PRIVATE = bytes([7] * 32)


def experiment(**tables: Any) -> Experiment:
    given: dict[str, Any] = {
        "experiment": {"name": "ward", "versions": 2},
        "task": {"clients": 6},
        "evaluation": {"every_updates": 0},
        "secure_aggregation": {"max_weight": 8, "max_value": 2.0},
        "admission": {"norm_factor": 0, "max_examples": 64},
        "aggregation": {"quorum": 3},
    }
    return Experiment.model_validate(given | tables)


def update(client: int, base_version: int = 0, run: Run = RUN, turn: int = 0) -> ClientUpdate:
    """A delta that is another for every client, as a client has it before it masks it."""
    rng = np.random.default_rng([client, base_version])
    turn = turn or client + 1
    return ClientUpdate(
        run=run,
        update_id=f"{run.run_id}:{turn}:{client}",
        client=str(client),
        turn=turn,
        base_version=base_version,
        worker="w",
        sends="delta",
        examples=8 * (client + 1),
        tensors={
            key: rng.uniform(-0.5, 0.5, a.shape).astype(a.dtype) for key, a in WEIGHTS.items()
        },
    )


def masked(plain: ClientUpdate, chosen: Experiment) -> ClientUpdate:
    """As it leaves."""
    plan = Plan.of(chosen, "delta", helper_key=public_key(PRIVATE))
    return outgoing(plain, plan, None, np.random.default_rng)[0]


LINEAR: list[dict[str, Any]] = [
    {"strategy": "fedbuff"},
    {"strategy": "fedbuff", "staleness": "constant", "server_optimizer": "adam"},
    {"strategy": "fedavg", "weighting": "uniform"},
    {"strategy": "fedavg"},
    {"strategy": "fedavgm", "staleness": "hinge"},
    {"strategy": "fedadagrad"},
    {"strategy": "fedadam", "plateau_patience": 2},
    {"strategy": "fedyogi"},
]


@pytest.mark.parametrize("table", LINEAR, ids=str)
def test_a_version_is_what_it_would_be_of_the_same_weights_without_masks(
    table: dict[str, Any],
) -> None:
    # Given weights that whole numbers up to max_weight can say: no update is stale, and examples
    # are multiples of an eighth of the largest
    tables: dict[str, Any] = {
        "aggregation": {"quorum": 3, **table},
        "evaluation": {"every_updates": 10},
    }
    secure, plain = experiment(**tables), experiment(**tables, secure_aggregation=None)
    strategies = make_strategy(secure), make_strategy(plain)
    assert isinstance(strategies[0], Masked)
    states = [s.init({k: a.copy() for k, a in WEIGHTS.items()}) for s in strategies]

    # When the same updates are folded, under masks and without
    updates = [update(client) for client in (0, 3, 5)]
    for one in updates:
        states[0] = strategies[0].accept(states[0], masked(one, secure), 0)
        states[1] = strategies[1].accept(states[1], one, 0)
    pairs = strategies[0].members(states[0])
    members = [Member(u.update_id, u.client, *pair) for u, pair in zip(updates, pairs, strict=True)]
    masks = mask_sum(members, Sealed("ward-1", WORDS, 3, 8), PRIVATE)
    versions = [
        strategies[0].step(strategies[0].unmask(states[0], masks)),
        strategies[1].step(states[1]),
    ]

    # Then the versions are the same, up to fixed point
    secure_model, plain_model = map(model_of, versions)
    if table["strategy"] == "fedavg":  # in a cohort it is of weights; here both are of deltas
        assert strategies[1].sends == "delta"
    for name, array in plain_model.items():
        assert np.allclose(secure_model[name], array, rtol=0, atol=1e-5), name
    assert not [name for name in versions[0] if name.startswith("buffer/")]


def test_weights_are_whole_numbers_and_never_zero() -> None:
    strategy = make_strategy(experiment(aggregation={"quorum": 3, "strategy": "fedavg"}))
    assert isinstance(strategy, Masked)
    state = strategy.init(WEIGHTS)
    for client, staleness in ((0, 0), (7, 0), (2, 5)):
        one = masked(update(client), experiment())
        one = one.model_copy(update={"examples": max(1, 8 * client)})
        state = strategy.accept(state, one, staleness)
    assert [weight for weight, _ in strategy.members(state)] == [1, 7, 2]
    # And a stale update of FedBuff's weighs less
    strategy = make_strategy(experiment())
    assert isinstance(strategy, Masked)
    assert [max(1, round(8 * strategy.s(tau))) for tau in (0, 1, 3, 99)] == [8, 6, 4, 1]


def test_a_model_with_values_that_have_no_sum_is_refused() -> None:
    strategy = make_strategy(experiment())
    with pytest.raises(UserError, match="non_trainable/1 of this model"):
        strategy.init(WEIGHTS | {"non_trainable/1": np.array([3])})


class Ward:
    """An aggregator in a folder, one helper, and clients that are written out here."""

    def __init__(self, folder: Path, chosen: Experiment) -> None:
        self.folder, self.chosen = folder, chosen
        self.broker = EmbeddedBroker()
        self.helper = HelperService(chosen, self.broker.helper(), folder / "helper")
        self.worker = self.broker.worker("w", 100)
        self.now = 0.0
        self.start()

    def start(self, settle: bool = True) -> None:
        """A leader; where there was one, it is gone without a word."""
        self.port = self.broker.aggregator()
        self.port.lead(0.0)
        self.service = AggregatorService(
            self.chosen,
            self.port,
            self.folder / "run",
            run_id="ward-1",
            initial={k: a.copy() for k, a in WEIGHTS.items()},
            clock=lambda: self.now,
            helper_key=self.helper.public_key,
        )
        self.service.begin()
        if settle:
            self.settle()

    def crash(self) -> None:
        """It is gone, and what it held is with the broker again."""
        self.service.close()
        self.port.close()

    def helper_dies(self) -> None:
        """It is gone with what it held, which another takes on."""
        self.helper.close()
        self.helper = HelperService(self.chosen, self.broker.helper(), self.folder / "helper")

    def answer(self, delivery: Delivery, sends: bool) -> None:
        """A client takes its turn, and sends an update or nothing."""
        message = delivery.envelope.message()
        assert isinstance(message, Assignment)
        if sends:
            self.send(message)
        self.worker.ack(delivery)

    def settle(self, helps: bool = False) -> None:
        while self.service.pump(0.0) or (helps and self.helper.pump(0.0)):
            pass

    def model(self) -> GlobalModel:
        envelope = self.worker.newest_model()
        message = envelope.message() if envelope else None
        assert isinstance(message, GlobalModel)
        return message

    def turns(self) -> list[Assignment]:
        taken = []
        while (delivery := self.worker.receive_assignment(0.0)) is not None:
            message = delivery.envelope.message()
            assert isinstance(message, Assignment)
            taken.append(message)
            self.worker.ack(delivery)
        return taken

    def send(self, turn: Assignment) -> ClientUpdate:
        plain = update(int(turn.client), self.model().version, turn.run, turn.turn)
        sent = outgoing(plain, self.model().plan, None, np.random.default_rng)[0]
        self.worker.submit(Envelope.of(sent))
        return plain

    def version(self) -> int:
        assert self.service.coordinator is not None
        return self.service.coordinator.version


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    return Ward(tmp_path, experiment())


def test_a_closed_buffer_waits_for_the_helper_and_takes_nothing_in(ward: Ward) -> None:
    # Given a buffer that three updates have closed, and no helper at work
    turns = ward.turns()
    sent = [ward.send(turn) for turn in turns[:3]]
    ward.settle()
    assert ward.version() == 0

    # When a fourth comes, time passes, and then the helper is there
    ward.send(turns[3])
    ward.now += 1000.0
    ward.settle()
    assert ward.broker.depths()["updates"] == 1
    ward.settle(helps=True)

    # Then the version is made of the three, as their plain mean has it, and the fourth comes next
    assert ward.version() == 1
    for name, before in WEIGHTS.items():
        mean = np.mean([one.tensors[name] for one in sent], axis=0)
        expected = before + mean if name.startswith("trainable/") else mean
        assert np.allclose(ward.model().tensors[name], expected, rtol=0, atol=1e-6)
    assert ward.broker.depths()["updates"] == 0
    with closing(LedgerReader(ward.folder / "run")) as ledger:
        assert verify(ledger) == []


def test_no_leader_asks_for_another_set_whenever_the_one_before_it_died(tmp_path: Path) -> None:
    # Given leaders that die with a closed buffer: before the helper answers, and after
    ward = Ward(tmp_path, experiment())
    turns = ward.turns()
    for turn in turns[:3]:
        ward.send(turn)
    ward.settle()
    ward.crash()
    ward.start()
    ward.send(turns[3])
    ward.settle()
    ward.crash()
    while ward.helper.pump(0.0):
        pass

    # When another leads on, with late updates and stale answers about
    ward.start()
    ward.settle(helps=True)

    # Then the version is made, of the set that was asked for by all of them, each id once
    assert ward.version() == 1
    with closing(HelperLedger(tmp_path / "helper")) as ledger:
        assert set(ledger.unmasked()) == {turn.assignment_id for turn in turns[:3]}
    with closing(LedgerReader(ward.folder / "run")) as record:
        assert verify(record) == []


def test_a_buffer_that_the_deadline_closes_stays_closed_through_a_crash(tmp_path: Path) -> None:
    # Given three updates of four at the deadline, and a leader that dies while the helper works
    ward = Ward(tmp_path, experiment(aggregation={"quorum": 4, "deadline_s": 5.0}))
    turns = ward.turns()
    for turn in turns[:3]:
        ward.send(turn)
    ward.settle()
    ward.now += 6.0
    ward.settle()
    ward.crash()

    # When the fourth comes before the next leader has an answer
    ward.send(turns[3])
    ward.start()
    ward.settle(helps=True)

    # Then the version is of three
    with closing(LedgerReader(ward.folder / "run")) as ledger:
        made = ledger.query("SELECT updates, closed_by FROM versions WHERE version = 1")
        assert made == [(3, "deadline")]
        assert verify(ledger) == []


def test_an_open_buffer_goes_on_after_a_crash(tmp_path: Path) -> None:
    ward = Ward(tmp_path, experiment())
    turns = ward.turns()
    for turn in turns[:2]:
        ward.send(turn)
    ward.settle()
    ward.service.pause()
    ward.crash()
    ward.start()
    ward.send(turns[2])
    ward.settle(helps=True)
    assert ward.version() == 1


def test_a_deadline_with_fewer_clients_than_the_helper_asks_for_extends(ward: Ward) -> None:
    for turn in ward.turns()[:2]:
        ward.send(turn)
    ward.settle()
    ward.now += 1000.0
    ward.settle(helps=True)
    assert ward.version() == 0


def test_a_client_is_in_a_buffer_once(ward: Ward) -> None:
    # Given a client whose turn is over and done with
    turns = ward.turns()
    ward.send(turns[0])
    ward.settle()

    # When everybody else is at work, then it gets no turn before the version is made
    assert ward.turns() == []
    # And a turn that it dropped long ago, and answers now, does not count
    other = turns[1].model_copy(
        update={"client": turns[0].client, "assignment_id": f"ward-1:99:{turns[0].client}"}
    )
    ward.send(other.model_copy(update={"turn": 99}))
    ward.settle()
    with closing(LedgerReader(ward.folder / "run")) as ledger:
        assert ledger.query("SELECT reason FROM rejections") == [("in_buffer",)]
    for turn in turns[1:3]:
        ward.send(turn)
    ward.settle(helps=True)
    assert ward.version() == 1
    assert turns[0].client in {turn.client for turn in ward.turns()}


def test_an_update_in_clear_is_rejected(ward: Ward) -> None:
    turn = ward.turns()[0]
    ward.worker.submit(Envelope.of(update(int(turn.client), 0, turn.run, turn.turn)))
    ward.settle()
    with closing(LedgerReader(ward.folder / "run")) as ledger:
        assert ledger.query("SELECT reason FROM rejections") == [("wrong_shape",)]


def test_a_helper_that_refuses_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    # Given an update whose seal is for nobody, as of a client that lies
    ward = Ward(tmp_path, experiment())
    turns = ward.turns()
    for turn in turns[:2]:
        ward.send(turn)
    liar = update(int(turns[2].client), 0, turns[2].run, turns[2].turn)
    sealed = Sealed("ward-1", WORDS, 2, 8)
    about = (ward.helper.public_key, sealed, liar.update_id, liar.client, 1024.0, 2.0)
    lie = mask(liar.tensors, *about)
    ward.worker.submit(Envelope.of(liar.model_copy(update={"tensors": lie})))

    # When the buffer is to be unmasked
    ward.settle(helps=True)

    # Then the run has failed, and says why
    assert ward.service.outcome == "failed"
    with closing(LedgerReader(ward.folder / "run")) as ledger:
        assert "a seal does not open" in ledger.meta["detail"]
        assert verify(ledger) == []


def test_answers_to_something_else_are_passed_over(ward: Ward) -> None:
    # Given a closed buffer, and answers of another digest, of a wrong length, and noise
    for turn in ward.turns()[:3]:
        ward.send(turn)
    ward.settle()
    helper = ward.broker.helper()
    asked = helper.receive(0.0)
    assert asked is not None
    request = asked.envelope.message()
    assert isinstance(request, UnmaskRequest)
    right = Masks(run=RUN, version=1, request=request.digest, tensors={})
    short = {"masks/words": np.zeros(WORDS - 1, np.uint32)}
    for odd in (
        right.model_copy(update={"request": "0" * 64, "refused": "no"}),
        right,
        right.model_copy(update={"tensors": short}),
    ):
        helper.answer(Envelope.of(odd))
    helper.answer(Envelope(b"noise"))
    helper.close()

    # When the true one comes after them, then that counts
    ward.settle(helps=True)
    assert ward.version() == 1
