"""Lines to paste: whatever way the program was started, a shell starts the same."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from fluffle.invocation import to_paste


def test_a_command_on_the_path_is_named_as_it_was_typed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = tmp_path / "fluffle"
    command.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(command), "run"])
    # When it is not on the path, its path is said; when it is, its name
    assert to_paste("report", Path("runs/a b")) == f"{command} report 'runs/a b'"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert to_paste("report", "runs/a") == "fluffle report runs/a"


def test_a_module_is_started_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/fluffle/__main__.py", "run"])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert to_paste("run", "e.toml") == f"{sys.executable} -m fluffle run e.toml"
