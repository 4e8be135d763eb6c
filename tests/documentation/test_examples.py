"""Every example of README and docs/ is one that works: checked here, and run where it says below.

TOML is a valid part of an experiment, Python compiles, and every line for the shell is taken apart:
its commands, options, settings, files, services, targets and extras exist. ``RUN`` names the test
that runs a block as it stands; ``NOT_RUN`` says of every other who does the like.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from fluffle.experiment_file import load_experiment
from fluffle.schemas import Experiment
from tests.docs import ROOT, blocks, pages, reference

EXAMPLES = [(page, *block) for page in pages() for block in blocks(page)]
SHELL = [(page, code) for page, language, code in EXAMPLES if language == "sh"]

INIT, PAGES = "tests/integration/test_init.py", "tests/integration/test_pages.py"
SITES = "tests/integration/test_sites_page.py"
SECURITY = "tests/integration/test_security_doc.py"
#: A page, what one of its blocks begins with, and the test that runs it.
RUN = {
    ("README.md", "fluffle run experiments/stragglers.toml"): PAGES,
    ("README.md", "fluffle run experiments/mnist.toml --broker local"): PAGES,
    ("README.md", "fluffle verify runs/first"): PAGES,
    ("docs/data.md", "fluffle data list"): PAGES,
    ("docs/extending.md", "fluffle run mine"): "tests/integration/test_extending_page.py",
    ("docs/index.md", "fluffle run experiments/mnist.toml --set experiment"): PAGES,
    ("docs/index.md", "fluffle run experiments/mnist.toml --set participation"): PAGES,
    ("docs/outputs.md", "fluffle export runs/first  "): PAGES,
    ("docs/outputs.md", "fluffle export runs/first --format csv"): PAGES,
    ("docs/own-task.md", "fluffle init first"): INIT,
    ("docs/resident-sites.md", "python experiments/make_sites.py"): SITES,
    ("docs/resident-sites.md", "fluffle broker users"): SITES,
    ("docs/resident-sites.md", "fluffle aggregator"): SITES,
    ("docs/resident-sites.md", "fluffle evaluator"): SITES,
    ("docs/resident-sites.md", "fluffle worker --broker amqp://"): SITES,
    ("docs/resident-sites.md", "fluffle verify"): SITES,
    ("docs/security.md", ""): SECURITY,  # all of them, in their order
    ("docs/simulate.md", "fluffle run experiments/stragglers.toml"): PAGES,  # both
    ("docs/troubleshooting.md", "fluffle doctor"): PAGES,
}
COMPOSE = "needs a Docker engine: tests/compose does the like"
#: Why a block is not run as it stands.
NOT_RUN = {
    ("README.md", "make run"): "every run of the tests begins with `make test`",
    ("README.md", "fluffle worker --broker amqps://hospital-7"): "tests/integration/test_sites.py",
    ("README.md", "docker compose"): COMPOSE,
    ("docs/backup.md", "docker compose"): COMPOSE,
    ("docs/backup.md", "fluffle backup"): "tests/aggregator/test_backup.py",
    ("docs/backup.md", "fluffle export"): "tests/integration/test_initial.py",
    ("docs/backup.md", "mv runs/first"): "tests/aggregator/test_backup.py",
    ("docs/compose.md", ""): COMPOSE,
    ("docs/gpu.md", "docker compose"): COMPOSE,
    ("docs/index.md", "make run"): "every run of the tests begins with `make test`",
    ("docs/index.md", "export PATH"): "changes the shell that one is in",
    ("docs/index.md", "fluffle init my-project"): INIT,
    ("docs/monitoring.md", "docker compose"): COMPOSE,
    ("docs/monitoring.md", "fluffle aggregator"): "tests/integration/test_metrics.py",
    ("docs/sweeps.md", ""): "tests/fluffle/test_sweep.py, on a task that takes no time",
    ("docs/outputs.md", "fluffle show"): "tests/fluffle/test_record.py",
    ("docs/outputs.md", "pip install"): "tests/fluffle/test_tracking.py, with both servers",
    ("docs/report.md", "fluffle report"): "names a run of another day; " + PAGES,
    (
        "docs/resident-sites.md",
        "fluffle worker --broker amqps://",
    ): "tests/integration/test_sites.py",
    ("docs/resident-sites.md", "make wheel"): "tests/packaging builds the wheel",
    ("docs/resident-sites.md", "sha256sum"): "tests/packaging installs it without an index",
    ("docs/kubernetes.md", "fluffle broker definitions"): "needs a cluster",
    ("docs/kubernetes.md", "kubectl"): "needs a cluster; tests/deploy builds the manifests",
    ("docs/secure-aggregation.md", "fluffle helper"): "tests/integration/test_secure.py",
    ("docs/site-policy.md", "fluffle"): "tests/integration/test_site_join.py",
    ("docs/reliability.md", "python"): "tests/chaos runs the sceptic",
    ("docs/watch.md", "pip install"): "tests/integration/test_watch.py, in a browser",
    ("docs/watch.md", "ssh"): "needs another machine",
    ("docs/verify.md", "fluffle verify"): "tests/integration/test_verify.py",
    ("docs/verify.md", "fluffle worker"): "tests/chaos/processes, with a broker",
}
#: Programs of others that examples call.
OTHERS = {
    "cp",
    "curl",
    "kubectl",
    "mv",
    "openssl",
    "rabbitmqctl",
    "sh",
    "sha256sum",
    "ssh",
    "tensorboard",
    "export",
    "echo",
}
LOOP = {"for", "do", "done"}


def ids(value: object) -> str | None:
    return value.strip().splitlines()[0][:50] if isinstance(value, str) else None


@pytest.mark.parametrize(("page", "code"), SHELL, ids=ids)
def test_every_block_for_the_shell_is_run_or_says_who_does_the_like(page: str, code: str) -> None:
    if page != "README.zh-CN.md":  # whose blocks are README's
        known = [key for key in (*RUN, *NOT_RUN) if key[0] == page and code.startswith(key[1])]
        assert known, f"a block of {page} that nobody runs: add a test"


def test_who_is_said_to_run_a_block_reads_its_page() -> None:
    for (page, start), test in RUN.items():
        assert any(page == p and code.startswith(start) for p, code in SHELL), (page, start)
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8"), test
    for page, start in NOT_RUN:
        assert any(page == p and code.startswith(start) for p, code in SHELL), (page, start)


@pytest.mark.parametrize(("page", "code"), [(p, c) for p, lang, c in EXAMPLES if lang == "toml"])
def test_every_toml_is_part_of_a_valid_experiment(page: str, code: str) -> None:
    Experiment.model_validate(tomllib.loads(code))


@pytest.mark.parametrize(("page", "code"), [(p, c) for p, lang, c in EXAMPLES if lang == "python"])
def test_all_python_compiles(page: str, code: str) -> None:
    compile(code, page, "exec")


@pytest.mark.parametrize(("page", "code"), [(p, c) for p, lang, c in EXAMPLES if lang == "yaml"])
def test_compose_overrides_are_of_services_that_there_are(page: str, code: str) -> None:
    assert set(yaml.safe_load(code)["services"]) <= services()


@pytest.mark.parametrize(("page", "code"), SHELL, ids=ids)
def test_every_line_for_the_shell_is_one_that_its_program_takes(page: str, code: str) -> None:
    for words in commands(code):
        check(words)


@pytest.mark.parametrize(
    "wrong",
    [
        "fluffle run experiments/nothing.toml",
        "fluffle run experiments/mnist.toml --quorum 5",
        "fluffle run experiments/mnist.toml --set aggregation.quorums=5",
        "fluffle run",
        "fluffle train experiments/mnist.toml",
        "docker compose up --scale workers=10",
        "EXPERIMENT=experiments/nothing.toml docker compose up",
        "docker compose run --rm aggregator verifies runs/first",
        "make nothing",
        "pip install 'fluffle[everything]'",
        "frobnicate",
    ],
)
def test_an_example_that_cannot_work_is_noticed(wrong: str) -> None:
    with pytest.raises(Exception):  # noqa: B017 of whatever kind
        check(*commands(wrong))


def commands(code: str) -> Iterator[list[str]]:
    """Words of each command, without comments, redirections and the words of a loop."""
    for line in re.sub(r"\\\n\s*", "", code).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|;&"):
                if words and words[0] not in LOOP:
                    yield words
                words = []
            else:
                words.append(word)


def check(words: list[str]) -> None:
    """That there is what this command asks for."""
    words = words[: words.index(">")] if ">" in words else words
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        assert name in (ROOT / "compose.yaml").read_text()
        assert name != "EXPERIMENT" or value.startswith("my-") or (ROOT / value).is_file()
    program, rest = words[0], words[1:]
    if program == "fluffle":
        check_fluffle(rest)
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif program == "python":
        assert (ROOT / rest[0]).is_file()
    elif program == "pip" and "fluffle[" not in rest[1]:
        assert "--require-hashes" in rest or "--no-index" in rest  # no name of ours on an index
    elif program == "pip":
        (extra,) = re.findall(r"fluffle\[(\w+)\]", rest[1])
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert extra in project["optional-dependencies"]
    elif program == "docker":
        check_compose(rest)
    else:
        assert program in OTHERS, program


def check_fluffle(words: list[str]) -> None:
    """The parser takes it, its experiment is there, and so are the keys that it sets."""
    leaves = dict(reference.leaves())
    for count in (1, 2):
        command = leaves.get(" ".join(["fluffle", *words[:count]]))
        if command is not None:
            break
    assert command is not None, f"there is no fluffle {words[0]}"
    with command.make_context("fluffle", list(words[count:])) as context:
        given = context.params
    file = given.get("file")
    if file and str(file).startswith("experiments/"):
        load_experiment(ROOT / file, given["settings"] or [])


def services() -> set[str]:
    """Those of compose.yaml."""
    return set(yaml.safe_load((ROOT / "compose.yaml").read_text())["services"])


def check_compose(words: list[str]) -> None:
    """Files, services and profiles exist; what runs in a container is right as well."""
    assert words[0] == "compose"
    for flag, value in pairwise(words):
        if flag == "-f":
            assert (ROOT / value).is_file()
        elif flag == "--scale":
            assert value.split("=")[0] in services()
        elif flag in ("--exit-code-from", "--follow", "--detach", "kill", "restart"):
            assert value in services()
        elif flag == "--profile":
            assert f"profiles: [{value}]" in (ROOT / "compose.yaml").read_text()
    if "run" in words:
        service = next(i for i, word in enumerate(words) if word in services())
        check_fluffle(words[service + 1 :])
