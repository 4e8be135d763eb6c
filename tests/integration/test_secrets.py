"""Whole runs over mutual TLS, and all that they leave: a password is nowhere in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import psutil
import pytest

from tests.broker.tls import PASSWORD, SITE, Certificates, SecureNode
from tests.integration.processes import Start, Started, verified, wait_for_version
from tests.integration.test_errors import refused

pytestmark = [
    pytest.mark.rabbitmq,
    pytest.mark.tensorflow,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

EXPERIMENT = """
[experiment]
name = "secret"
versions = 6
[task]
name = "digits-lr"
clients = 6
[evaluation]
every_updates = 6
"""
#: However it may have been written down.
SPELLINGS = [text.encode() for text in (PASSWORD, quote(PASSWORD, safe=""), quote_plus(PASSWORD))]


class Site:
    """A broker, and the options by which a person reaches it."""

    def __init__(self, node: SecureNode, certificates: Certificates, secrets: Path) -> None:
        self.node = node
        self.url = f"amqps://{SITE}@{node.address}/%2F"
        self.password = secrets / "password"
        self.password.write_text(f"{PASSWORD}\n")
        self.files = {
            "tls_ca": certificates.file("ca.pem"),
            "tls_cert": certificates.file("site.pem"),
            "tls_key": certificates.file("site.key"),
            "password_file": self.password,
        }

    @property
    def options(self) -> list[object]:
        named = [(f"--{name.replace('_', '-')}", path) for name, path in self.files.items()]
        return ["--broker", self.url, *(part for pair in named for part in pair)]

    @property
    def environment(self) -> dict[str, str]:
        files = {f"FLUFFLE_{name.upper()}": str(path) for name, path in self.files.items()}
        return {"FLUFFLE_BROKER": self.url, **files}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    with SecureNode(certificates) as node:
        node.add_user(SITE, PASSWORD, ".*", ".*", ".*")
        yield Site(node, certificates, tmp_path_factory.mktemp("secrets"))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.toml"
    path.write_text(EXPERIMENT)
    return path


def holds_no_password(text: bytes) -> bool:
    return not any(spelling in text for spelling in SPELLINGS)


def leaking(folder: Path) -> list[Path]:
    """Files that hold the password."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if not holds_no_password(path.read_bytes())]


def titles(*running: Started) -> bytes:
    """What anybody on this machine sees of these processes and of those that they have started."""
    processes = [psutil.Process(one.process.pid) for one in running]
    family = [*processes, *(child for one in processes for child in one.children(True))]
    return "\n".join(" ".join(one.cmdline()) for one in family).encode()


def test_services_over_mutual_tls_leave_no_password_anywhere(
    start: Start, site: Site, federation: str, secret: Path, tmp_path: Path
) -> None:
    # Given a run whose services are told of their files by options
    out = tmp_path / "out"
    where = [*site.options, "--federation", federation]
    aggregator = start("aggregator", secret, *where, "--out", out, "--json")
    worker = start("worker", *where, "--journal", tmp_path / "journal", "--stay")
    evaluator = start("evaluator", *where, "--stay")
    # When it runs
    wait_for_version(out, 1, aggregator, worker, evaluator)
    seen = titles(aggregator, worker, evaluator)
    told = site.node.ctl("list_connections", "name", "client_properties", "user").encode()
    assert aggregator.wait() == 0, aggregator.output
    # And is looked at in every way
    assert start("doctor", *where, "--json").wait() == 0
    assert start("report", out).wait() == 0
    looked = start("verify", out, *where)
    assert looked.wait() == 0, looked.output
    verified(start, out)
    # Then nobody finds the password: not in what was printed or kept, in titles or connections
    assert SITE.encode() in told
    assert holds_no_password(seen + told)
    assert leaking(tmp_path) == []


def test_a_run_with_worker_processes_hands_on_what_it_was_told_by_its_environment(
    start: Start,
    site: Site,
    federation: str,
    secret: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given files named by the environment
    for name, value in site.environment.items():
        monkeypatch.setenv(name, value)
    # When an experiment runs with worker processes
    out = tmp_path / "out"
    run = start(
        *("run", secret, "--out", out, "--workers", 1, "--federation", federation, "--json")
    )
    wait_for_version(out, 1, run)
    seen = titles(run)
    assert run.wait() == 0, run.output
    # Then it ends well, and nobody finds the password
    assert run.summary()["status"] == "finished"
    assert b"worker-0" in seen
    assert holds_no_password(seen)
    assert leaking(tmp_path) == []


def test_what_does_not_fit_is_one_line_whatever_the_command(
    start: Start, site: Site, secret: Path, tmp_path: Path
) -> None:
    files = {"aggregator": [secret, "--out", tmp_path / "out"], "run": [secret]}
    commands = ("aggregator", "worker", "evaluator", "run")
    password = ("--password-file", site.password)
    # Given no password, none of the authority's certificate, and a URL for no TLS
    for options, says in (
        (("--broker", site.url), f"no password for user '{SITE}'"),
        (("--broker", site.url, *password), "name the authority's certificate with --tls-ca"),
        (("--broker", site.url.replace("amqps", "amqp"), *password), "a port for TLS, perhaps"),
    ):
        rest = (*options, "--connect-timeout", 5)
        started = [start(command, *files.get(command, []), *rest) for command in commands]
        # Then each command says what to do, in one line without the password
        for one in started:
            assert says in refused(one)
    assert leaking(tmp_path) == []
