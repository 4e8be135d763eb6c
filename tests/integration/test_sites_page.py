"""The commands of docs/resident-sites.md, as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fluffle.broker.admin.node import Node
from tests.docs import ROOT, example
from tests.integration.processes import Start
from tests.integration.test_sites import until

PAGE = "docs/resident-sites.md"

pytestmark = [pytest.mark.rabbitmq, pytest.mark.tensorflow, pytest.mark.slow]


@pytest.mark.timeout(600)
def test_one_follows_the_page_from_the_data_to_the_check(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a person in a checkout, and a broker on this machine
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with Node(tmp_path / "node") as node:

        def words(containing: str) -> list[str]:
            line = (
                example(PAGE, containing)
                .strip()
                .replace("@localhost/", f"@127.0.0.1:{node.tcp_port}/")
            )
            return shlex.split(line)[1:]

        # When they type what the page says
        subprocess.run([sys.executable, *words("make_sites.py")], check=True)
        make_users(node, words("broker users"))
        lead = start(*words("fluffle aggregator"))
        evaluator = start(*words("fluffle evaluator"))
        site = start(*words("--client-id person-0"))
        until(lambda: site.output.count(": trained on ") > 2, lead, evaluator, site)
        for one in (site, evaluator, lead):
            one.kill(signal.SIGTERM)
            assert one.wait() == (130 if one is lead else 0), one.output
        check = start(*words("fluffle verify"))
        assert check.wait() == 0, check.output
    # Then the site says what the page shows
    shown = example(PAGE, "admitted to run").replace("…\n", "")
    assert kinds(shown) <= kinds(site.output)


def make_users(node: Node, words: list[str]) -> None:
    """``fluffle broker users … | sh``, on the broker's machine."""
    assert words[-2:] == ["|", "sh"]
    command = [sys.executable, "-m", "fluffle", *words[:-2]]
    script = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    here = node._environment()
    here["PATH"] = f"{node._scripts}:{here['PATH']}"
    subprocess.run(["sh", "-e"], input=script, env=here, check=True, text=True)


def kinds(text: str) -> set[str]:
    """What kinds of lines these are: without times, names and numbers."""
    bare = re.sub(r"run \S+|\d[\d.,:]*%?|\b[kM]B\b", "", text)
    return {" ".join(line.split()) for line in bare.splitlines()}


def test_the_task_on_the_page_is_the_example() -> None:
    shown = example(PAGE, "class WearablesSite(Task)")
    assert shown == (ROOT / "experiments" / "wearables_site.py").read_text()
    code = shown.split('"""\n', 1)[1]
    assert len([line for line in code.splitlines() if line.strip()]) < 40
