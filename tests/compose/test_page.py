"""The live page of the containers' runs: it is there, moves, and can do nothing else."""

from __future__ import annotations

import http.client
import json
import subprocess
from contextlib import closing
from typing import Any

import pytest

pytestmark = pytest.mark.compose


def event(port: int) -> dict[str, Any]:
    """What the page is sent first."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/events")
        line = connection.getresponse().readline()
    return dict(json.loads(line.removeprefix(b"data: ")))


def test_the_run_is_on_the_page_and_goes_on_there(stack):
    label = stack.folder.name
    seen = event(stack.page_port)
    assert label in {run["label"] for run in seen["runs"]}
    before = next(run["version"] for run in seen["runs"] if run["label"] == label)
    stack.wait_for(
        "the page to move",
        lambda: (
            next(r["version"] for r in event(stack.page_port)["runs"] if r["label"] == label)
            > before
        ),
    )


def test_the_page_can_neither_write_a_run_nor_reach_a_broker(stack):
    (page,) = stack.containers("dashboard")
    for told, ends_with in (
        ("open('runs/mine', 'w')", "Read-only file system"),
        ("import socket; socket.create_connection(('rabbitmq', 5672), 5)", "gaierror"),
    ):
        done = subprocess.run(
            ["docker", "exec", page, "python", "-c", told], capture_output=True, text=True
        )
        assert done.returncode == 1, done.stdout
        assert ends_with in done.stderr
