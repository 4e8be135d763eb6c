"""Whatever a client's code says or raises ends one turn, and no worker, evaluator or aggregator."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.service import AggregatorService
from fluffle.broker import Envelope
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import (
    ClientFailed,
    ClientUpdate,
    Evaluation,
    Experiment,
    GlobalModel,
    Plan,
    Run,
    Tensors,
    UserError,
)
from fluffle.schemas.errors import contained, describe
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.evaluator import EvaluatorService
from fluffle.worker.services.resident import ResidentService
from fluffle.worker.services.shutdown import Shutdown
from fluffle.worker.services.slot import Slot, SlotContext
from fluffle.worker.tasks.registry import load_task

RUN = Run(run_id="run", run_started=1, epoch=1)
WEIGHTS = {"trainable/0": np.zeros(2, np.float32)}
EXPERIMENT = Experiment.model_validate(
    {
        "experiment": {"versions": 2},
        "task": {"clients": 4},
        "aggregation": {"quorum": 2, "deadline_s": 60.0},
        "evaluation": {"every_updates": 0},
    }
)


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class Leaves(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Odd(BaseException):
    pass


def recurse() -> None:
    recurse()


def throw(error: BaseException) -> Callable[[], None]:
    def code() -> None:
        raise error

    return code


RAISED: dict[str, Callable[[], None]] = {
    "a surrogate": throw(ValueError("a file named \udcff")),
    "a text that raises": throw(Silent()),
    "a text that exits": throw(Leaves()),
    "SystemExit": throw(SystemExit(1)),
    "GeneratorExit": throw(GeneratorExit()),
    "KeyboardInterrupt of a thread": throw(KeyboardInterrupt()),
    "StopIteration": throw(StopIteration(1)),
    "a BaseException of one's own": throw(Odd("odd")),
    "a name of two lines": throw(type("Bad\nname", (Exception,), {})("x")),
    "RecursionError": recurse,
    "MemoryError": throw(MemoryError()),
    "an enormous text": throw(ValueError("x" * 10_000_000)),
    "lines and escapes": throw(ValueError("one\ntwo\x1b[31m\x00")),
}

MEASURED: dict[str, Any] = {
    "a loss that no message carries": {"loss": 1.7e308},
    "no number": {"loss": "low"},
    "None": {"loss": None},
    "an array": {"loss": np.zeros(3)},
    "not finite": {"loss": float("nan")},
    "endless": {"loss": 10**400},
    "a thousand": {f"m{i}": 1.0 for i in range(1000)},
}
TAKEN: dict[str, Any] = {
    "a surrogate": {"\udcff": 1.0},
    "a long name": {"x" * 1000: 1.0},
    "a name of the log's": {"version": 1.0, "at": 2.0, "event": 3.0},
    "no text for a name": {7: 1.0, None: 2.0},
    "NumPy's numbers": {"loss": np.float32(0.5), "n": np.int64(3), "b": np.bool_(True)},
}


@dataclass
class Trained:
    tensors: Tensors
    metrics: Any = field(default_factory=lambda: {"loss": 1.0})
    examples: int = 1
    seconds: float = 0.0
    extra: ClassVar[Tensors] = {}
    state: ClassVar[Tensors] = {}


class UsersTrainer:
    """Does what a user's code does once, the first time; then it is well."""

    def __init__(self, code: Callable[[], None] | None, metrics: Any = None) -> None:
        self._codes = [code] if code else []
        self._metrics = [metrics] if metrics else []

    def _act(self) -> None:
        if self._codes:
            self._codes.pop()()

    def initial(self) -> Tensors:
        self._act()
        return WEIGHTS

    def train(self, base: Tensors, *_: Any) -> Trained:
        self._act()
        moved = {name: array + np.float32(1) for name, array in base.items()}
        return Trained(moved, self._metrics.pop() if self._metrics else {"loss": 1.0})

    def evaluate(
        self, weights: Tensors, by_client: bool = True, state: Any = None
    ) -> tuple[Any, int]:
        self._act()
        return (self._metrics.pop() if self._metrics else {"loss": 1.0}), 1


def federation(
    folder: Path, trainer: UsersTrainer, initial: Tensors | None
) -> tuple[str, list[Any]]:
    """A run with one slot of this trainer: how it ended, and what turns brought."""
    broker, answers = EmbeddedBroker(), []
    port = broker.worker("w", 1)
    shutdown = Shutdown(port)
    context = SlotContext(
        worker_id="w",
        port=port,
        shutdown=shutdown,
        states=ClientStates(),
        on_turn=answers.append,
    )
    service = AggregatorService(
        EXPERIMENT, broker.aggregator(), folder, run_id="run", initial=initial
    )
    ends: list[BaseException] = []

    def work() -> None:
        try:
            Slot(context, lambda plan: trainer).run()  # type: ignore[arg-type,return-value]
        except BaseException as error:
            ends.append(error)
            service.stop()

    thread = threading.Thread(target=work)
    thread.start()
    outcome = service.run()
    shutdown.stop()
    thread.join()
    assert not ends
    return outcome, answers


@pytest.mark.parametrize("code", RAISED.values(), ids=RAISED)
@pytest.mark.parametrize("initial", [WEIGHTS, None], ids=["training", "first weights"])
def test_what_a_training_raises_costs_one_turn(
    tmp_path: Path,
    code: Callable[[], None],
    initial: Tensors | None,
    said: list[str],
) -> None:
    # Given a worker whose user's code raises this once
    # When a run goes to its end
    outcome, answers = federation(tmp_path, UsersTrainer(code), initial)
    # Then it has one failure, said in one line that anything can print
    assert outcome == "finished"
    (failed,) = [answer for answer in answers if isinstance(answer, ClientFailed)]
    assert 0 < len(failed.reason) <= 2000
    for line in (failed.reason, *said):
        assert line.isprintable()
        line.encode("ascii")
    assert Ledger(tmp_path).count("updates WHERE turn > 0 AND disposition = 'counted'") == 4


@pytest.mark.parametrize("metrics", MEASURED.values(), ids=MEASURED)
def test_metrics_that_are_no_numbers_fail_their_turn(tmp_path: Path, metrics: Any) -> None:
    outcome, answers = federation(tmp_path, UsersTrainer(None, metrics), WEIGHTS)
    assert outcome == "finished"
    assert len([answer for answer in answers if isinstance(answer, ClientFailed)]) == 1


@pytest.mark.parametrize("metrics", TAKEN.values(), ids=TAKEN)
def test_metrics_of_odd_names_and_types_travel(tmp_path: Path, metrics: Any) -> None:
    outcome, answers = federation(tmp_path, UsersTrainer(None, metrics), WEIGHTS)
    assert outcome == "finished"
    assert not [answer for answer in answers if isinstance(answer, ClientFailed)]
    assert len(answers[0].metrics) == len(metrics)


def evaluate(trainer: UsersTrainer, stay: bool) -> tuple[list[Evaluation], list[str]]:
    """What an evaluator of three versions sends and says; ends with the third. Raises: as it."""
    broker, sent, said = EmbeddedBroker(), [], []
    leader = broker.aggregator()
    leader.lead(1)
    port = broker.worker("e", 0)
    tables = {"task": {"name": "digits-lr"}, "evaluation": {"every_updates": 1}}
    plan = Plan.of(Experiment.model_validate(tables), "delta")

    def publish(version: int) -> None:
        model = GlobalModel(
            run=RUN, version=version, updates=version, plan=plan, tensors=dict(WEIGHTS)
        )
        leader.publish_model(Envelope.of(model))

    def on_evaluation(evaluation: Evaluation) -> None:
        sent.append(evaluation)
        step(evaluation.version)

    def step(version: int) -> None:
        if version < 3:
            publish(version + 1)
        else:
            service.stop()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(line := record.getMessage())
            if "is not evaluated" in line:
                step(int(line.split()[1]))

    service = EvaluatorService(
        *(port, "e"),
        stay=stay,
        on_evaluation=on_evaluation,
        make_trainer=lambda plan: trainer,  # type: ignore[arg-type,return-value]
    )
    publish(1)
    heard, logger = Heard(), logging.getLogger("fluffle.worker.services.evaluator")
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    try:
        service.run()
    finally:
        logger.removeHandler(heard)
        logger.setLevel(logging.NOTSET)
    return sent, said


@pytest.mark.parametrize(
    "code", [c for n, c in RAISED.items() if "Keyboard" not in n], ids=lambda c: ""
)
def test_what_an_evaluation_raises_costs_one_evaluation_of_who_stays(
    code: Callable[[], None],
) -> None:
    sent, said = evaluate(UsersTrainer(code), stay=True)
    assert [evaluation.version for evaluation in sent] == [2, 3]
    (line,) = [line for line in said if "version 1 is not evaluated" in line]
    assert line.isprintable()


@pytest.mark.parametrize("metrics", MEASURED.values(), ids=MEASURED)
def test_an_evaluator_outlives_metrics_that_are_no_numbers(metrics: Any) -> None:
    sent, said = evaluate(UsersTrainer(None, metrics), stay=True)
    assert [evaluation.version for evaluation in sent][-2:] == [2, 3]
    assert len([line for line in said if line.startswith("version 1")]) == 1


def test_an_evaluator_that_never_could_says_so_and_ends_and_a_person_stops_any() -> None:
    with pytest.raises(UserError, match="no such thing"):
        evaluate(UsersTrainer(throw(UserError("no such thing"))), stay=False)
    with pytest.raises(KeyboardInterrupt):
        evaluate(UsersTrainer(throw(KeyboardInterrupt())), stay=True)


@pytest.mark.parametrize("code", RAISED.values(), ids=RAISED)
def test_what_a_training_raises_costs_a_site_that_stays_one_version(
    code: Callable[[], None],
    said: list[str],
) -> None:
    # Given a site whose user's code raises this once
    broker, sent = EmbeddedBroker(), []
    leader = broker.aggregator()
    leader.lead(1)
    tables = {
        "task": {"name": "digits-lr"},
        "participation": {"residents": ["lab-3"], "identity": "none"},
    }
    plan = Plan.of(Experiment.model_validate(tables), "delta")

    def publish(version: int) -> None:
        model = GlobalModel(run=RUN, version=version, plan=plan, tensors=dict(WEIGHTS))
        leader.publish_model(Envelope.of(model))

    def on_turn(answer: Any) -> None:
        sent.append(answer)
        if len(sent) == 1:
            publish(2)
        else:
            service.stop()

    trainer = UsersTrainer(code)
    service = ResidentService(
        *(broker.worker("lab-3", 0), "lab-3"),
        stay=True,
        on_turn=on_turn,
        open_task=load_task,
        make_trainer=lambda plan: trainer,  # type: ignore[arg-type,return-value]
    )
    ends: list[BaseException] = []

    def reside() -> None:
        try:
            service.run()
        except BaseException as error:
            ends.append(error)

    # When two versions come, and it is in a thread: nobody presses Ctrl-C there
    publish(1)
    thread = threading.Thread(target=reside)
    thread.start()
    thread.join(60)
    # Then it has failed at the first and trained the second, and nothing but its kind was told
    assert not ends
    assert [type(answer) for answer in sent] == [ClientFailed, ClientUpdate]
    assert sent[0].reason.endswith(" at the site, whose log says more")
    assert all(line.isprintable() for line in said)


def test_a_turn_that_fails_for_a_reason_without_text_is_told_as_its_kind() -> None:
    assert describe(Silent()) == "Silent: (it cannot say what)"
    assert describe(ValueError("a\udcffb\nc")) == "ValueError: a\\udcffb c"
    assert describe(UserError("mend it")) == "mend it"
    assert len(describe(ValueError("\ud800" * 5000))) == 2000
    with pytest.raises(KeyboardInterrupt):
        contained(KeyboardInterrupt())
