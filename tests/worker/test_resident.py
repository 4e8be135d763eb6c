"""A resident client's service, against the aggregator's, on the embedded broker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.service import AggregatorService
from fluffle.broker import Closed, Envelope
from fluffle.broker.embedded import EmbeddedBroker, EmbeddedWorkerPort
from fluffle.schemas import (
    ClientFailed,
    ClientUpdate,
    Event,
    Experiment,
    GlobalModel,
    Message,
    Plan,
    Run,
    UserError,
)
from fluffle.schemas.codec import unpack
from fluffle.schemas.messages import resident_update_id
from fluffle.schemas.sizes import human_bytes
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.resident import ResidentService
from fluffle.worker.tasks import registry as tasks
from fluffle.worker.tasks.task import examples_of

pytestmark = pytest.mark.tensorflow

TASK = """
import numpy as np
from fluffle import Examples, Task


class Site(Task):
    def model(self):
        import keras
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])

    def dataset(self):
        return self.read("train")

    def test(self):
        return self.read("test")

    def read(self, name):
        with np.load(self.data_dir) as arrays:
            return Examples(arrays[name], arrays[name + "_y"])

    def preprocess(self, x):
        if (self.data_dir.parent / "broken").exists():
            raise ValueError("patient 4711 has a bad row")
        return x
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A site's folder: 60 examples, 20 of them held out."""
    folder = tmp_path / "site"
    folder.mkdir()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    y = x[:, :3].argmax(axis=1).astype(np.uint8)
    arrays = {"train": x[:40], "train_y": y[:40], "test": x[40:], "test_y": y[40:]}
    np.savez(folder / "data.npz", **arrays)
    (folder / "site_task.py").write_text(TASK)
    tasks.use(f"{folder / 'site_task.py'}:Site", folder / "data.npz")
    yield folder
    tasks.use(None, None)


def experiment(**tables: Any) -> Experiment:
    participation = {"residents": ["lab-3", "clinic-2"], "identity": "none"}
    return Experiment.model_validate(
        {
            "task": {"name": "site_task.py:Site", "clients": 0},
            "training": {"optimizer": "sgd", "learning_rate": 0.5, "epochs": 2},
            "evaluation": {"every_updates": 0},
            **tables,
            "participation": {**participation, **tables.get("participation", {})},
        }
    )


WEIGHTS = {"trainable/0": np.zeros((4, 3), np.float32), "trainable/1": np.zeros(3, np.float32)}


@dataclass
class Scripted:
    """A broker with one site on it, and a leader that publishes what a test says."""

    broker: EmbeddedBroker = field(default_factory=EmbeddedBroker)
    sent: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.leader = self.broker.aggregator()
        self.leader.lead(1)
        self.leader.consume(10)
        self.port = self.broker.worker("lab-3", 0)

    def start(self, stay: bool = False, **more: Any) -> None:
        self.heard: list[int] = []
        self.service = ResidentService(
            *(self.port, "lab-3"),
            stay=stay,
            **more,
            on_model=lambda model, size: self.heard.append(model.version),
            on_turn=self.sent.append,
        )
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.service.run()
        except BaseException as error:
            self.error = error

    def publish(self, version: int, attempt: int = 0, epoch: int = 1, **changes: Any) -> None:
        run = Run(run_id=changes.pop("run_id", "run"), run_started=1, epoch=epoch)
        plan = Plan.of(changes.pop("experiment", experiment()), "delta")
        fields = {"tensors": WEIGHTS, **changes}
        model = GlobalModel(run=run, version=version, attempt=attempt, plan=plan, **fields)
        self.leader.publish_model(Envelope.of(model))

    def hears(self, version: int) -> None:
        """Until the site has looked at this version."""
        while version not in self.heard:
            self.thread.join(0.01)

    def take(self) -> Any:
        """The next message that is no event."""
        while True:
            delivery = self.leader.receive(60)
            assert delivery is not None
            if delivery.is_event:
                continue
            self.leader.ack([delivery])
            return delivery.envelope.message()

    def nothing(self) -> bool:
        """Nothing more comes, until the site has left."""
        self.service.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()
        while (delivery := self.leader.receive(0.01)) is not None:
            if not delivery.is_event:
                return False
        return True


def test_a_site_and_an_aggregator_without_a_single_turn(
    site: Path, tmp_path: Path, said: list[str]
) -> None:
    # Given a run of residents alone, and one of them
    broker = EmbeddedBroker()
    tables = experiment(experiment={"versions": 4}, aggregation={"quorum": 1})
    resident = ResidentService(broker.worker("lab-3", 0), "lab-3")
    thread = threading.Thread(target=resident.run)
    thread.start()
    # When it is led to its end
    lead = AggregatorService(
        tables, broker.aggregator(), tmp_path / "out", run_id="run", initial=WEIGHTS
    )
    assert lead.run() == "finished"
    thread.join(60)
    assert not thread.is_alive()
    # Then each version is of one update of its 40 examples, and it says what it gave and got
    ledger = Ledger(tmp_path / "out")
    rows = ledger.query("SELECT client, examples, base_version FROM updates ORDER BY version")
    assert rows == [("lab-3", 40, version) for version in range(4)]
    versions = [line for line in said if ": trained on " in line]
    assert len(versions) == 4
    assert all("accuracy on 20 held-out ones: global" in line for line in versions)
    summary = next(line for line in said if line.startswith("contributed"))
    assert "4 updates from 160 examples" in summary
    assert "accuracy here: global" in summary
    bytes_down, bytes_up = ledger.query("SELECT SUM(bytes_down), SUM(bytes_up) FROM updates")[0]
    assert bytes_down > 4 * 60
    assert f"{human_bytes(bytes_up)} up" in summary


def test_a_site_does_to_its_update_what_the_plan_says_before_it_leaves(site: Path) -> None:
    federation = Scripted()
    federation.start()
    federation.publish(0, experiment=experiment(update=[{"kind": "quantise", "bits": 8}]))
    update = federation.take()
    assert update.tensors["trainable/0"].dtype == np.uint8
    assert update.tensors["range/trainable/0"].shape == (2,)


def test_a_site_never_simulates_and_says_so(site: Path, said: list[str]) -> None:
    # Given runs of the same experiment, in one of which every client lies and most turns are lost
    devices = {"byzantine": 1.0, "dropout": 0.9, "delay": "constant", "delay_s": 3600.0}
    sent = []
    for tables in ({}, {"devices": devices}):
        federation = Scripted()
        federation.start()
        federation.publish(0, experiment=experiment(**tables))
        sent.append(federation.take())
        assert federation.nothing()
    # Then the site sends the same update, and has said why
    assert sent[0].tensors["trainable/0"].tobytes() == sent[1].tensors["trainable/0"].tobytes()
    assert len([line for line in said if "a site never simulates" in line]) == 1


def test_a_site_is_not_asked_to_remember_what_compression_left_over() -> None:
    with pytest.raises(ValidationError, match="error_feedback = false"):
        experiment(update=[{"kind": "top_k", "share": 0.1}])


def test_it_trains_once_for_each_version_and_attempt(site: Path) -> None:
    federation = Scripted()
    federation.start()
    ids = []
    for version, attempt, epoch in [(0, 0, 1), (0, 1, 1), (1, 0, 1), (2, 1, 2)]:
        federation.publish(version, attempt, epoch)
        update = federation.take()
        assert isinstance(update, ClientUpdate)
        ids.append(update.update_id)
        assert (update.client, update.base_version, update.turn) == ("lab-3", version, attempt + 1)
        assert update.run.epoch == epoch
    assert ids == [
        resident_update_id("run", "lab-3", version, attempt)
        for version, attempt in [(0, 0), (0, 1), (1, 0), (2, 1)]
    ]
    # Nothing for an attempt behind it under another leader, and nothing where there are no weights
    federation.publish(2, 0, epoch=3)
    federation.publish(2, 1, epoch=4)
    federation.publish(3, 0, epoch=4, tensors={})
    assert federation.nothing()
    assert [type(message) for message in federation.sent] == [ClientUpdate] * 4


def test_a_restarted_site_sends_the_very_same_update_which_counts_once(site: Path) -> None:
    updates = []
    for _ in range(2):
        federation = Scripted()
        federation.start()
        federation.publish(7, 2)
        updates.append(federation.take())
        assert federation.nothing()
    first, second = updates
    assert first.update_id == second.update_id
    for name, array in first.tensors.items():
        assert array.tobytes() == second.tensors[name].tobytes()


def test_two_versions_are_trained_in_other_orders_of_examples(site: Path) -> None:
    federation = Scripted()
    federation.start()
    federation.publish(0)
    first = federation.take()
    federation.publish(1)
    second = federation.take()
    assert first.tensors["trainable/0"].tobytes() != second.tensors["trainable/0"].tobytes()
    assert federation.nothing()


def test_what_fails_at_a_site_is_said_there_in_full_and_sent_as_its_kind_alone(site: Path) -> None:
    # Given a site whose data break the training
    (site / "broken").touch()
    federation = Scripted()
    federation.start()
    # When a model comes
    federation.publish(0)
    failure = federation.take()
    # Then the aggregator learns that it failed, and nothing about patients
    assert isinstance(failure, ClientFailed)
    assert failure.reason == "ValueError at the site, whose log says more"
    federation.thread.join(60)
    assert isinstance(federation.error, UserError)
    assert "patient 4711" in str(federation.error)
    assert "site_task.py, line 23" in str(federation.error)


@pytest.mark.parametrize("stay", [False, True])
def test_data_that_cannot_be_read_are_a_failure_that_the_aggregator_hears_of(
    site: Path, stay: bool
) -> None:
    # Given a site whose data file is none any more
    (site / "data.npz").write_bytes(b"patient 4711")
    federation = Scripted()
    federation.start(stay=stay)
    # When a model comes
    federation.publish(0)
    failure = federation.take()
    # Then it is said, once, and nothing of what is in it
    assert isinstance(failure, ClientFailed)
    assert failure.reason == "data or task cannot be read at the site, whose log says more"
    if stay:
        federation.publish(0)
        assert federation.nothing()
        federation.service.stop()
        federation.thread.join(60)
        assert federation.error is None
    else:
        federation.thread.join(60)
        assert isinstance(federation.error, UserError)


def test_labels_that_the_model_has_no_output_for_are_said_at_the_site_before_it_trains(
    site: Path,
) -> None:
    # Given a site that numbers its classes from 1
    with np.load(site / "data.npz") as found:
        arrays = dict(found)
    arrays["train_y"] += 1
    np.savez(site / "data.npz", **arrays)
    # When a model comes
    federation = Scripted()
    federation.start()
    federation.publish(0)
    # Then the turn fails, and the site says which example and what to do
    assert isinstance(federation.take(), ClientFailed)
    federation.thread.join(60)
    assert "has the label 3, and the model has 3 outputs, so labels are 0 to 2" in str(
        federation.error
    )


def test_a_site_whose_own_file_would_number_the_classes_does_not_join(
    site: Path, tmp_path: Path
) -> None:
    # Given a task that leaves it to each site's table what a class's number is
    (tmp_path / "ours.csv").write_text("age,stay,pain\n1,2,mild\n3,4,none\n5,6,mild\n")
    text = TASK[: TASK.index("    def read")].replace(
        "np\n", "np\nfrom fluffle import read_csv\n", 1
    )
    text += """    def read(self, name):
        return read_csv(self.data_dir, target="pain", features=["age", "stay"]).examples
"""
    plan = Plan.of(experiment(), "delta")
    for name, classes in (("silent", ""), ("said", ', classes=["none", "mild"]')):
        (site / f"{name}.py").write_text(text.replace('"stay"])', f'"stay"]{classes})'))
        tasks.use(f"{site / name}.py:Site", tmp_path / "ours.csv")
        # When it is to join
        if name == "silent":
            # Then it is told so before anything is trained
            with pytest.raises(UserError, match="give classes="):
                tasks.open_data(plan)
        else:
            assert examples_of(tasks.open_data(plan), "dataset").y.tolist() == [1, 0, 1]


def test_a_site_that_stays_goes_on_after_a_failure(site: Path, said: list[str]) -> None:
    (site / "broken").touch()
    federation = Scripted()
    federation.start(stay=True)
    federation.publish(0)
    assert isinstance(federation.take(), ClientFailed)
    (site / "broken").unlink()
    federation.publish(1)
    assert isinstance(federation.take(), ClientUpdate)
    assert federation.nothing()
    assert "1 trainings failed" in said[-1]


@pytest.mark.parametrize(
    ("tables", "user", "says"),
    [
        ({"participation": {"residents": ["clinic-2"]}}, "lab-3", "does not admit lab-3"),
        ({"participation": {"residents": None}, "task": {}}, "lab-3", "does not admit lab-3"),
        ({"participation": {"identity": "broker"}}, "guest", "we are user 'guest'"),
    ],
)
def test_a_site_that_is_not_let_in_leaves_and_one_that_stays_waits(
    site: Path, tables: dict[str, Any], user: str, says: str, said: list[str]
) -> None:
    federation = Scripted()
    federation.port.user = user
    federation.start()
    federation.publish(0, experiment=experiment(**tables))
    federation.thread.join(60)
    assert isinstance(federation.error, UserError)
    assert says in str(federation.error)
    # One that stays is let in by the next run
    federation = Scripted()
    federation.port.user = user
    federation.start(stay=True)
    for version in range(2):
        federation.publish(version, experiment=experiment(**tables))
        federation.hears(version)
    federation.publish(0, epoch=2, run_id="other")
    assert isinstance(federation.take(), ClientUpdate)
    assert federation.nothing()
    assert len([line for line in said if says in line]) == 1


def test_a_run_that_ended_before_it_came_is_not_its_run(site: Path) -> None:
    federation = Scripted()
    federation.publish(9, final=True, run_id="before")
    federation.start()
    federation.publish(0, epoch=2)
    assert isinstance(federation.take(), ClientUpdate)
    federation.publish(1, epoch=2, final=True)
    federation.thread.join(60)
    assert not federation.thread.is_alive()
    assert federation.error is None
    events = []
    while (delivery := federation.leader.receive(0.01)) is not None:
        events.append(delivery.envelope.message())
    assert [event.kind for event in events if isinstance(event, Event)][-1] == "left"


#: A bias of the site's own, and momentum that goes on.
PERSONAL: dict[str, Any] = {
    "weights": {"keep": ["dense/bias"]},
    "training": {
        **{"optimizer": "sgd", "learning_rate": 0.5, "epochs": 2},
        **{"momentum": 0.9, "optimizer_state": "keep"},
    },
}
SHARED = {"trainable/dense/kernel": np.zeros((4, 3), np.float32)}


class KilledAt(ClientStates):
    """A site's folder, whose process does nothing more before or after it has written a state."""

    def __init__(self, folder: Path, moment: str) -> None:
        super().__init__(folder, memory_bytes=0)
        self.moment = moment
        self.dead = threading.Event()

    def save(self, *state: Any) -> None:
        if self.moment == "before":
            self._die()
        super().save(*state)
        if self.moment == "after":
            self._die()

    def _die(self) -> None:
        self.dead.set()
        threading.Event().wait()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "run" / "lab-3").iterdir()}


def test_what_a_site_keeps_never_leaves_it_and_is_exact_through_kills(
    site: Path, tmp_path: Path, said: list[str]
) -> None:
    from fluffle.worker.training.per_plan import make_trainer

    # Given what a site's trainings make, one after the other, of versions 0, 2 and 3
    tables = experiment(**PERSONAL)
    trainer = make_trainer(Plan.of(tables, "delta"))
    state, expected = dict[str, Any](), []
    for version in (0, 2, 3):
        trained = trainer.train(SHARED, "lab-3", 1, None, state, version)
        state = trained.state
        expected.append((trained.tensors["trainable/dense/kernel"], state))
    assert sorted(state) == ["optimizer/0", "optimizer/1", "personal/trainable/dense/bias"]
    assert (expected[0][1]["optimizer/0"] != state["optimizer/0"]).any()
    # When it is killed at version 2, before its state is written and after that, and started again
    sent = dict[int, Any]()
    for version, moment in [(0, ""), (2, "before"), (2, "after"), (2, ""), (3, "")]:
        federation = Scripted()
        states = KilledAt(tmp_path / "kept", moment)
        federation.start(states=states, make_trainer=lambda plan: trainer)
        federation.publish(version, tensors=SHARED, experiment=tables)
        if moment:
            assert states.dead.wait(60)
            assert federation.sent == []
            continue
        sent[version] = federation.take()
        assert federation.nothing()
    # Then it sends what it would have sent, and nothing of its own
    for (kernel, _), update in zip(expected, sent.values(), strict=True):
        assert list(update.tensors) == ["trainable/dense/kernel"]
        assert update.tensors["trainable/dense/kernel"].tobytes() == kernel.tobytes()
        assert update.after is None
        assert not [name for name in update.metrics if "personal" in name]
    # And keeps the same, in files of its own
    name = "v3.0-v2.0.msgpack"
    _, files = unpack(files_of(tmp_path / "kept")[name])
    kept = expected[-1][1]
    assert {k: a.tobytes() for k, a in files.items()} == {k: a.tobytes() for k, a in kept.items()}
    assert len([line for line in said if "starts anew" in line]) == 1
    # And a run that goes on from a version before goes on from what there was before it
    federation = Scripted()
    states = ClientStates(tmp_path / "kept", memory_bytes=0)
    federation.start(states=states, make_trainer=lambda plan: trainer)
    federation.publish(2, tensors=SHARED, experiment=tables)
    again = federation.take().tensors["trainable/dense/kernel"]
    assert again.tobytes() == sent[2].tensors["trainable/dense/kernel"].tobytes()
    assert federation.nothing()
    assert name not in files_of(tmp_path / "kept")


def test_an_aggregator_counts_sites_that_keep_what_is_theirs(site: Path, tmp_path: Path) -> None:
    # Given a run whose clients keep state, and a site
    broker = EmbeddedBroker()
    tables = experiment(**PERSONAL, experiment={"versions": 3}, aggregation={"quorum": 1})
    resident = ResidentService(broker.worker("lab-3", 0), "lab-3")
    thread = threading.Thread(target=resident.run)
    thread.start()
    lead = AggregatorService(
        tables, broker.aggregator(), tmp_path / "out", run_id="run", initial=SHARED
    )
    # Then all that it sends is counted, and nothing of its own is in the run's folder
    assert lead.run() == "finished"
    thread.join(60)
    ledger = Ledger(tmp_path / "out")
    assert ledger.query("SELECT disposition, COUNT(*) FROM updates") == [("counted", 3)]
    stored = ledger.load().state
    ledger.close()
    assert stored is not None
    assert not [name for name in stored if "bias" in name or "optimizer" in name]


@pytest.mark.parametrize(
    "tables",
    [
        {"training": {"algorithm": "ditto"}},
        {"training": {"algorithm": "moon"}},
        {"training": {"keep_state": True}},
    ],
)
def test_sites_may_keep_what_is_theirs_alone(tables: dict[str, Any]) -> None:
    assert Plan.of(experiment(**tables), "delta").keeps_state


class Unconfirmed(EmbeddedWorkerPort):
    """A port whose broker is away: nothing is confirmed until it is closed."""

    asked = False

    def submit(self, envelope: Envelope) -> None:
        self.asked = True
        with self._broker.changed:
            self._broker.changed.wait_for(lambda: self._closed)
        raise Closed


def test_a_site_told_to_stop_does_not_wait_for_a_broker_for_ever(
    site: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr("fluffle.worker.services.shutdown.LEAVE_S", 0.1)
    federation = Scripted()
    federation.port = port = Unconfirmed(federation.broker, "lab-3", 0)
    federation.start()
    federation.publish(0)
    while not port.asked:
        federation.thread.join(0.01)
    federation.service.stop()
    federation.thread.join(60)
    assert not federation.thread.is_alive()
    assert federation.error is None
    assert any("stopped before the broker had confirmed" in line for line in said)
    assert "0 updates" in said[-1]
