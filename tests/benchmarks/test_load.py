"""What the load benchmark makes of its samples and journals."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "load"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module; it finds the files beside it as when it is run."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    spec = importlib.util.spec_from_file_location("load_measure", FOLDER / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "load_measure", module)
    spec.loader.exec_module(module)
    return module


def test_memory_that_grows_after_the_start_shows_in_quarters_and_slope(load: Any) -> None:
    # Given ten minutes of samples: a steep start, then 3 MB more every minute, with noise
    at = np.arange(600.0)
    noise = np.random.default_rng(0).normal(size=600)
    rss = 100 + np.minimum(at, 60) * 5 + at / 60 * 3 + noise
    # When the trend is taken
    trend = load.trend_of(list(at), list(rss))
    # Then the start is left out of it, and the rise is not
    assert trend.per_minute == pytest.approx(3, abs=0.1)
    assert trend.last - trend.second == pytest.approx(3 * 5, abs=0.5)
    assert trend.grew == pytest.approx(15 / 411, rel=0.05)


def test_a_lone_spike_is_the_peak_and_no_growth(load: Any) -> None:
    rss = [200.0] * 600
    rss[500] = 900.0
    trend = load.trend_of(list(map(float, range(600))), rss)
    assert (trend.grew, trend.peak) == (0.0, 900.0)


def test_a_watch_sees_this_process_and_outlives_one_that_ends(load: Any) -> None:
    # Given a watch over this process and one that ends at once
    with load.Watch() as watch:
        short = subprocess.Popen([sys.executable, "-c", ""])
        watch.add("short", short.pid)
        watch.add("this", os.getpid())
        short.wait()
        # When two samples are taken
        while len(watch.series["this"].at_s) < 2:
            time.sleep(0.05)
    # Then they are of this process
    series = watch.series["this"]
    assert series.peak_mb > 10
    assert min(series.fds) > 2
    assert series.cpu_s[-1] >= series.cpu_s[0] > 0


def test_waits_are_read_from_journals(load: Any, tmp_path: Path) -> None:
    # Given a stop from 10 to 20: one update before, one within, one over its end, one after
    lines = [(8, 9), (11, 12), (13, 24), (25, 26)]
    journal = tmp_path / "worker.jsonl"
    with journal.open("w") as file:
        for number, times in enumerate(lines):
            for what, at in zip(("sending", "confirmed"), times, strict=True):
                entry = {"at": at, "what": what, "update_id": f"u{number}"}
                print(json.dumps(entry), file=file)
    # Then one was confirmed while it lasted, and one waited 11 s
    waits = load._waits([journal], 10, 20)
    assert waits.during == 1
    assert waits.over_s == [11]
