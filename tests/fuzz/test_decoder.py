"""The decoder's promises, for the corpus that fuzzing has found and for a moment of more fuzzing.

``make fuzz SECONDS=600`` fuzzes for longer, and adds what it finds to the corpus.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fluffle.schemas import GlobalModel, Message, codec
from tests.fuzz.hostile import Attacker
from tests.fuzz.promises import check

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
GOLDEN = HERE.parent / "schemas" / "golden"
SECONDS = int(os.environ.get("FLUFFLE_FUZZ_SECONDS", "5"))


def test_the_promises_hold_for_all_that_fuzzing_has_found() -> None:
    outcomes = [check(path.read_bytes()) for path in sorted(CORPUS.iterdir())]
    assert None in outcomes
    assert any(isinstance(outcome, Message) for outcome in outcomes)


def test_the_promises_hold_for_what_is_sent_to_live_runs() -> None:
    golden = check((GOLDEN / "global-model.bin").read_bytes())
    assert isinstance(golden, GlobalModel)
    model = golden.model_copy(update={"tensors": {"trainable/0": np.ones((4, 3), np.float32)}})
    for hostile in Attacker(model, seed=1).messages(2_000):
        check(hostile.body)


def test_a_codec_that_changes_what_it_carries_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a decoder that loses the last tensor
    views = codec._views

    def careless(body: bytes, start: int, table: list[codec._Entry]) -> codec.Tensors:
        return dict(list(views(body, start, table).items())[:-1])

    monkeypatch.setattr(codec, "_views", careless)
    # Then good messages that are encoded again find it
    with pytest.raises(AssertionError):
        list(map(check, [path.read_bytes() for path in GOLDEN.glob("*.bin")]))


@pytest.mark.timeout(SECONDS + 300)
def test_a_moment_of_fuzzing_breaks_no_promise(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not here: pip install 'fluffle[fuzz]'")
    options = (f"-max_total_time={SECONDS}", "-timeout=10", "-rss_limit_mb=1024", "-max_len=4096",
               f"-artifact_prefix={tmp_path}/")  # fmt: skip
    # By way of a shell: Linux counts our own memory as the peak of what we start.
    shell = ("sh", "-c", '"$@"; exit $?', "sh")
    fuzzer = subprocess.run(
        [*shell, sys.executable, "-m", "tests.fuzz.decoder", tmp_path, CORPUS, GOLDEN, *options],
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
    )
    assert fuzzer.returncode == 0, fuzzer.stderr[-4000:]
    done = re.search(r"Done (\d+) runs", fuzzer.stderr)
    assert done is not None, fuzzer.stderr[-4000:]
    assert int(done[1]) > 1000
