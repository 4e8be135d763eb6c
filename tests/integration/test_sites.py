"""Resident clients as people run them: a process, a folder and a RabbitMQ user for each site."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pika
import pytest

from fluffle.aggregator.ledger.weights import Store
from fluffle.broker.admin.node import Node
from fluffle.broker.admin.permissions import of_resident
from fluffle.broker.rabbitmq import envelopes
from fluffle.broker.topology import EVENTS, UPDATES, Topology
from fluffle.schemas import ClientFailed, ClientUpdate, Event, decode
from fluffle.schemas.tensors import spec
from tests.integration.processes import PATIENCE_S, Start, Started, verified, version, wait_until
from tests.integration.test_errors import refused

pytestmark = [pytest.mark.rabbitmq, pytest.mark.tensorflow, pytest.mark.slow]

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SITES = [f"person-{number}" for number in range(5)]


class Federation:
    """Users on a broker, folders of sites, and the commands that each place would type."""

    def __init__(self, start: Start, node: Node, name: str, folder: Path) -> None:
        self.start = start
        self.node = node
        self.topology = Topology(name)
        self.folder = folder
        self.out = folder / "out"
        self._passwords: dict[str, str] = {}

    def add_user(self, client: str, rights: tuple[str, str, str] | None = None) -> None:
        # A name of the test's own, as RabbitMQ's users belong to all federations.
        self._passwords[client] = secrets.token_hex(8)
        with_rights = rights or astuple(of_resident(self.topology, client))
        self.node.ctl("add_user", client, self._passwords[client])
        self.node.ctl("set_permissions", "-p", "/", client, *with_rights)

    def remove_users(self) -> None:
        for client in self._passwords:
            self.node.ctl("delete_user", client)

    def url(self, client: str, password: str | None = None) -> str:
        where = urlsplit(self.node.url)
        word = password or self._passwords[client]
        return f"amqp://{client}:{word}@{where.hostname}:{where.port}{where.path}"

    def aggregator(self, *settings: str, initial: Path | None = None) -> Started:
        return self.start(
            *("aggregator", EXPERIMENTS / "sites.toml", "--broker", self.node.url),
            *("--federation", self.topology.federation, "--out", self.out, "--json"),
            *[part for setting in settings for part in ("--set", setting)],
            *(("--initial", initial) if initial else ()),
        )

    def pool(self, data: str) -> Started:
        return self.start(
            *("worker", "--broker", self.node.url, "--federation", self.topology.federation),
            *("--task", self._task(data), "--data", self.folder / data),
        )

    def evaluator(self) -> Started:
        return self.start(
            *("evaluator", "--broker", self.node.url, "--federation", self.topology.federation),
            *("--task", self._task("evaluator"), "--data", self.folder / "evaluator"),
        )

    def site(self, client: str, *more: object, url: str = "", data: str = "") -> Started:
        return self.start(
            *("worker", "--broker", url or self.url(client), "--client-id", client),
            *("--federation", self.topology.federation, "--task", self._task(data or client)),
            *("--data", self.folder / (data or client), *more),
        )

    def _task(self, folder: str) -> str:
        """Each place has a copy of its own: code never travels."""
        copy = self.folder / folder / "wearables_site.py"
        shutil.copy(EXPERIMENTS / "wearables_site.py", copy)
        return f"{copy}:WearablesSite"


def deal(folder: Path) -> Path:
    """The sites' folders, as the example makes them."""
    spec_ = importlib.util.spec_from_file_location("make_sites", EXPERIMENTS / "make_sites.py")
    assert spec_ is not None
    assert spec_.loader is not None
    module = importlib.util.module_from_spec(spec_)
    spec_.loader.exec_module(module)
    module.main(folder)
    return folder


@pytest.fixture
def places(start: Start, rabbitmq: Node, federation: str, tmp_path: Path) -> Iterator[Federation]:
    federated = Federation(start, rabbitmq, federation, deal(tmp_path / "sites"))
    yield federated
    federated.remove_users()


#: Several sites start one after the other.
until = partial(wait_until, patience_s=2 * PATIENCE_S)


class Shadow:
    """Everything that anybody submits, as an administrator can see it."""

    def __init__(self, place: Federation) -> None:
        self._url = place.node.url
        self._queue = f"{place.topology.federation}.shadow"
        with closing(self._connect()) as connection:
            channel = connection.channel()
            channel.queue_declare(self._queue, durable=True)
            for key in (UPDATES, EVENTS):
                channel.queue_bind(self._queue, place.topology.submit, key)

    def messages(self) -> list[tuple[str, bytes, str]]:
        """Who sent it, the body, and its properties as text."""
        found = []
        with closing(self._connect()) as connection:
            channel = connection.channel()
            while True:
                method, properties, body = channel.basic_get(self._queue, auto_ack=True)
                if method is None:
                    break
                found.append((properties.user_id, body, repr(envelopes.envelope(properties, b""))))
            channel.queue_delete(self._queue)
        return found

    def _connect(self) -> pika.BlockingConnection:
        return pika.BlockingConnection(pika.URLParameters(self._url))


def waits_for_weights(lead: Started) -> bool:
    """The aggregator has set the federation up."""
    return "waiting for an evaluator" in lead.output


def contributed(one: Started) -> bool:
    return ": trained on " in one.output


def counted(out: Path) -> dict[str, int]:
    """How many updates of each client are in the ledger."""
    with closing(sqlite3.connect(out / "ledger.sqlite")) as ledger:
        return dict(ledger.execute("SELECT client, COUNT(*) FROM updates GROUP BY client"))


def samples(folder: Path) -> set[bytes]:
    """Every time sample of a site's data (six axes), as it would look in a message."""
    with np.load(folder / "wearables.npz") as arrays:
        x = np.concatenate([arrays["x_train"], arrays["x_test"]]).reshape(-1, 6)
    kept = x[np.count_nonzero(x, axis=1) == 6]
    return {row.tobytes() for row in kept} | {row.tobytes() for row in kept.astype(np.float64)}


def appears_in(body: bytes, rows: set[bytes]) -> bool:
    return any(body[i : i + n] in rows for n in (24, 48) for i in range(len(body) - n + 1))


@pytest.mark.timeout(900)
def test_five_sites_of_which_two_are_absent_half_the_time_get_to_the_end(
    places: Federation,
) -> None:
    # Given five sites with users of their own, and a run that knows nothing but their names
    for name in SITES:
        places.add_user(name)
    lead = places.aggregator("experiment.versions=12", "aggregation.deadline_s=4")
    until(lambda: waits_for_weights(lead), lead)
    shadow = Shadow(places)
    sites = [places.site(name) for name in SITES]
    until(lambda: all("waits for a model" in site.output for site in sites), lead, *sites)
    evaluator = places.evaluator()
    steady = sites[:3]
    # When one of the others is stopped and continued, and one killed and started, all along
    over = threading.Event()
    absent = [
        threading.Thread(target=stop_and_continue, args=(places, sites[3], over)),
        threading.Thread(target=kill_and_start, args=(places, sites[4], over)),
    ]
    for thread in absent:
        thread.start()
    try:
        until(lambda: version(places.out) >= 12, lead, evaluator, *steady)
    finally:
        over.set()
        for thread in absent:
            thread.join(2 * PATIENCE_S)
    # Then the run finishes, and the sites leave by themselves and say what they gave
    assert lead.wait() == 0, lead.output
    summary = lead.summary()
    assert (summary["status"], summary["versions"]) == ("finished", 12)
    assert set(summary["updates_rejected"]) <= {"late", "too_stale"}
    assert summary["dropouts"] == 0
    verified(places.start, places.out)
    for one in steady:
        assert one.wait() == 0, one.output
        assert "contributed to run" in one.output
        assert "accuracy here: global" in one.output
        assert "local" in one.output
    with closing(sqlite3.connect(places.out / "ledger.sqlite")) as ledger:
        clients = {client for (client,) in ledger.execute("SELECT client FROM updates")}
    assert {*SITES[:3], "0"} <= clients <= {*SITES, "0"}
    assert clients & set(SITES[3:]), "neither of the absent ones ever took part"
    check_what_was_sent(places, shadow.messages())


def stop_and_continue(place: Federation, one: Started, over: threading.Event) -> None:
    while not over.is_set():
        one.kill(signal.SIGSTOP)
        one_version(place, over)
        one.kill(signal.SIGCONT)
        one_version(place, over)


def kill_and_start(place: Federation, one: Started, over: threading.Event) -> None:
    while True:
        while not contributed(one) and not over.wait(0.1):
            pass
        one.kill()
        one_version(place, over)
        if over.is_set():
            return
        one = place.site(SITES[4])


def one_version(place: Federation, over: threading.Event) -> None:
    """As long as it takes the others to make one."""
    at = version(place.out)
    while version(place.out) == at and not over.wait(0.1):
        pass


def check_what_was_sent(place: Federation, messages: list[tuple[str, bytes, str]]) -> None:
    """Updates of the model's shape, failures, events; not one sample of anybody's data."""
    rows = set().union(*(samples(place.folder / name) for name in SITES))
    assert len(rows) > 50_000
    model: Any = None
    kinds = set()
    for user, body, properties in messages:
        message = decode(body)
        kinds.add((user in SITES, type(message)))
        assert str(place.folder) not in body.decode("latin-1") + properties
        if user in SITES:
            assert isinstance(message, ClientUpdate | ClientFailed | Event)
            assert message.worker == user
            assert not appears_in(body, rows), f"data of {user} were sent"
        if isinstance(message, ClientUpdate):
            model = model or spec(message.tensors)
            assert spec(message.tensors) == model
            assert len(body) < sum(a.nbytes for a in message.tensors.values()) + 2000
            assert set(message.metrics) <= {"accuracy", "loss"}
    assert {(True, ClientUpdate), (True, Event), (False, ClientUpdate)} <= kinds
    planted = next(iter(rows))
    assert appears_in(b"..." + planted + b"...", rows), "the search finds nothing at all"


@pytest.mark.parametrize("why", ["list", "password", "user", "rights", "virtual host"])
def test_a_site_that_is_refused_says_why(places: Federation, why: str) -> None:
    # Given a run that admits the five, and is waiting for weights
    lead = places.aggregator()
    until(lambda: waits_for_weights(lead), lead)
    places.evaluator()
    # When a site is not what it should be
    if why == "list":
        places.add_user("person-9")
        one, says = places.site("person-9", data="person-0"), "does not admit person-9"
    elif why == "password":
        places.add_user("person-0")
        url = places.url("person-0", "s3cret")
        one, says = places.site("person-0", url=url), "refused user 'person-0'"
    elif why == "user":
        one, says = places.site("person-0", url=places.node.url), "we are user 'fluffle'"
    elif why == "rights":
        places.add_user("person-0", ("^$", "^$", "^$"))
        one, says = places.site("person-0"), "RabbitMQ refused a right that is needed"
    else:
        places.add_user("person-0")
        url = places.url("person-0").rpartition("/")[0] + "/elsewhere"
        one, says = places.site("person-0", url=url), "may not use this virtual host"
    # Then it ends with one line that says so, and no password in it
    assert says in refused(one)
    assert "s3cret" not in one.output


def weights(folder: Path) -> Path:
    """A weights file for the example's model."""
    rng = np.random.default_rng(0)
    shapes = [(8, 6, 16), (16,), (8, 16, 32), (32,), (32, 7), (7,)]
    arrays = {
        f"model/trainable/{i}": rng.normal(scale=0.1, size=shape).astype(np.float32)
        for i, shape in enumerate(shapes)
    }
    store = Store(folder)
    return store.folder / store.write("model", 0, 1, arrays)


@pytest.mark.timeout(900)
def test_a_site_beside_pooled_clients_outlives_the_broker(
    start: Start, federation: str, tmp_path: Path
) -> None:
    # Given a run that begins with weights from a file, with two pooled clients and one site
    with Node(tmp_path / "node") as node:
        place = Federation(start, node, federation, deal(tmp_path / "sites"))
        place.add_user("person-0")
        lead = place.aggregator(
            *("task.clients=2", "aggregation.quorum=2", "aggregation.deadline_s=2"),
            *(
                "experiment.versions=1000",
                "experiment.max_minutes=60",
                "evaluation.every_updates=0",
            ),
            initial=weights(tmp_path),
        )
        pool, site = place.pool("person-1"), place.site("person-0")
        everybody = {"0", "1", "person-0"}
        until(
            lambda: version(place.out) > 3 and set(counted(place.out)) == everybody,
            lead,
            pool,
            site,
        )
        # When the broker goes, and comes back
        node.stop()
        until(lambda: "trying again" in site.output, lead, pool, site)
        node.start()
        until(lambda: "connected again" in site.output, lead, pool, site)
        before = site.output.count(": trained on ")
        until(lambda: site.output.count(": trained on ") > before + 2, lead, pool, site)
        # Then all go on, and each leaves in order when it is told to
        for one in (site, pool, lead):
            one.kill(signal.SIGTERM)
            assert one.wait() == (130 if one is lead else 0), one.output  # its run goes on
    assert "contributed to run" in site.output
    verified(start, place.out)
    assert set(counted(place.out)) == everybody
    assert counted(place.out)["person-0"] > 3
