"""Tasks of any framework: the page's, run as they stand there, in processes without TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.docs import example

PAGE = "docs/frameworks.md"

#: Runs the command line in this process, and says afterwards what is imported.
WATCHED = """
import json, sys
from fluffle.cli import main
try:
    code = main()
except SystemExit as left:
    code = left.code
loaded = [name for name in ("tensorflow", "keras", "torch", "jax") if name in sys.modules]
print("LOADED", json.dumps(loaded))
sys.exit(code)
"""

EXPERIMENT = """
[experiment]
versions = 6
[task]
name = "own.py:{name}"
clients = 4
[partition]
kind = "iid"
[participation]
concurrency = 2
[aggregation]
strategy = "{strategy}"
quorum = 2
keep_updates = true
[evaluation]
every_updates = 4
[training]
epochs = 2
learning_rate = 0.05
{more}
"""


def run(folder: Path, code: str, *options: str, **keys: str) -> tuple[int, str, list[str]]:
    """Exit code, output, and which frameworks that process had imported."""
    (folder / "own.py").write_text(code)
    name = code.rpartition("class ")[2].partition("(")[0]
    keys = {"name": name, "strategy": "fedbuff", "more": "", **keys}
    (folder / "own.toml").write_text(EXPERIMENT.format(**keys))
    command = ["run", str(folder / "own.toml"), "--json", *options]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *command], capture_output=True, text=True, cwd=folder
    )
    loaded: Any = [line[7:] for line in done.stdout.splitlines() if line.startswith("LOADED ")]
    return done.returncode, done.stdout + done.stderr, json.loads(loaded[0]) if loaded else []


def test_the_pages_numpy_task_learns_without_tensorflow_and_is_the_same_again(
    tmp_path: Path,
) -> None:
    # Given the NumPy task of the page
    code = example(PAGE, "class Softmax(ArrayTask)")
    hashes = []
    for out, slots in (("a", "1"), ("b", "2")):
        # When it runs under the virtual clock
        status, output, loaded = run(
            tmp_path, code, "--clock", "virtual", "--slots", slots, "--out", str(tmp_path / out)
        )
        assert status == 0, output
        summary = json.loads([line for line in output.splitlines() if line[:1] == "{"][-1])
        # Then it learns, no framework is imported, and its arrays are saved
        assert summary["accuracy"] > 0.5
        assert loaded == []
        arrays = np.load(tmp_path / out / "model.npz")
        assert arrays["trainable/w"].shape == (64, 10)
        hashes.append(summary["weights_sha256"])
    # And slots change no byte, and every version can be recomputed
    assert hashes[0] == hashes[1]
    verify = ["-m", "fluffle", "verify", str(tmp_path / "a"), "--replay"]
    assert subprocess.run([sys.executable, *verify], capture_output=True).returncode == 0


def test_the_pages_ensemble_of_local_models_learns(tmp_path: Path) -> None:
    code = example(PAGE, "class Stumps(ArrayTask)")
    status, output, loaded = run(
        *(tmp_path, code, "--clock", "virtual", "--out", str(tmp_path / "s")),
        *("--set", "training.epochs=20", "--set", "training.learning_rate=0.5"),
    )
    assert status == 0, output
    summary = json.loads([line for line in output.splitlines() if line[:1] == "{"][-1])
    # Four clients' stumps tell more than the commoner class, which is no more than 65 %
    assert summary["accuracy"] > 0.85
    assert loaded == []


def test_it_compresses_and_keeps_state_as_any_other(tmp_path: Path) -> None:
    code = example(PAGE, "class Softmax(ArrayTask)")
    more = '\nkeep_state = true\n[[update]]\nkind = "top_k"\nshare = 0.1\n'
    kept = code.replace("{}\n", '{"turns": (state or {}).get("turns", np.zeros(1)) + 1}\n')
    assert kept != code
    status, output, _ = run(tmp_path, kept, "--out", str(tmp_path / "c"), more=more)
    assert status == 0, output
    # A state that is not asked for is refused, before it is lost
    status, output, _ = run(tmp_path, kept, "--out", str(tmp_path / "d"))
    assert status == 2
    assert "set training.keep_state = true" in output


@pytest.mark.parametrize(
    ("was", "becomes", "why"),
    [
        ('return {"w"', 'return {"a/ b": w0, "w"', "names have letters"),
        ("np.float32)}", "np.complex64)}", "weights"),
        ("def evaluate", "def measure", "lacks evaluate"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_trained(
    tmp_path: Path, was: str, becomes: str, why: str
) -> None:
    code = example(PAGE, "class Softmax(ArrayTask)")
    assert was in code
    status, output, _ = run(
        tmp_path,
        code.replace(was, becomes.replace("w0", "np.zeros(1)")),
        "--out",
        str(tmp_path / "out"),
    )
    assert status == 2, output
    assert why in output
    assert "Traceback" not in output


def test_strategies_that_change_a_clients_training_are_refused(tmp_path: Path) -> None:
    code = example(PAGE, "class Softmax(ArrayTask)")
    status, output, _ = run(
        tmp_path, code, "--out", str(tmp_path / "e"), strategy="scaffold",
        more='optimizer = "sgd"',
    )  # fmt: skip
    assert status == 2, output
    assert "an ArrayTask trains by itself" in output
