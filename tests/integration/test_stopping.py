"""A run that a person stops: it says so, and the line that it ends with goes on with it."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.processes import PATIENCE_S, Start, verified, wait_for_version


@pytest.mark.tensorflow
@pytest.mark.slow
def test_a_stopped_run_says_so_and_its_last_line_can_be_pasted(
    start: Start, experiment: Path, tmp_path: Path
) -> None:
    # Given a run with a folder and a setting that a shell would take apart
    out = tmp_path / "my run"
    settings = ["training.optimizer = 'sgd'", "evaluation.every_updates=0"]
    options = [word for setting in settings for word in ("--set", setting)]
    arguments = ["run", experiment, "--slots", "1", *options, "--json", "--out", out]
    one = start("--log-level", "info", *arguments)
    wait_for_version(out, 2, one)
    # When it is stopped
    one.kill(signal.SIGINT)
    assert one.wait() == 130, one.output
    lines = one.output.strip().splitlines()
    # Then the summary says so
    (summary,) = [json.loads(line) for line in lines if line.startswith("{")]
    assert summary["status"] == "stopped"
    # And the line as it stands resumes it, with one more option, until its end
    (last,) = [line for line in lines if "stopped; to resume: " in line]
    words = shlex.split(last.split("to resume: ", 1)[1])
    assert words[-2:] == ["--out", str(out)]
    assert words.index("--log-level") < words.index("run") < words.index("--slots")
    less = ["--set", f"experiment.versions={summary['versions'] + 2}"]
    command = [sys.executable, "-m", "fluffle", *words[words.index("fluffle") + 1 :], *less]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "finished"
    assert "resuming at version" in done.stderr
    verified(start, out)
