"""CSV files of devices: numbers from here on, and one line where they are none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fluffle.device_files import check_travels
from fluffle.experiment_file import load_experiment
from fluffle.schemas import Experiment, Plan, UserError
from fluffle.worker.devices import Devices


def load(folder: Path, key: str, path: str) -> Experiment:
    file = folder / "experiment.toml"
    trace = "availability = 'trace'\n" if key == "trace" else ""
    file.write_text(f"[devices]\n{trace}{key} = {path!r}")
    return load_experiment(file)


def test_tables_lie_beside_the_experiment_file_and_travel_as_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given tables in a folder that is not where we are
    (tmp_path / "trace.csv").write_text("start,client,end\n10,0,20\n0.5,1,100\n")
    (tmp_path / "devices.csv").write_text("latency_s,seconds_per_example\n1,0.1\n2,0.2\n")
    file = tmp_path / "experiment.toml"
    file.write_text(
        "[devices]\navailability = 'trace'\ntrace = 'trace.csv'\nhardware = 'devices.csv'\n"
    )
    monkeypatch.chdir("/")
    # When the experiment is loaded
    experiment = load_experiment(file)
    # Then they are numbers in it, which a plan and a ledger bring back as they are
    assert experiment.devices is not None
    assert experiment.devices.trace == "0 10 20;1 0.5 100"
    assert experiment.devices.hardware == "0.1 1 inf inf;0.2 2 inf inf"
    assert Experiment.model_validate(json.loads(experiment.model_dump_json())) == experiment
    devices = Devices(Plan.of(experiment, "delta"))
    assert devices.next_start("0", 0.0) == 10.0
    assert {devices.outcome(str(c), 0).hardware.latency_s for c in range(30)} == {1.0, 2.0}


@pytest.mark.parametrize(
    ("key", "content", "says"),
    [
        ("trace", "secret\nsecret\n", "is no CSV with columns client,start,end"),
        ("trace", "client,start,end\n0,1,2\nsecret,1,2\n", "line 3 of"),
        ("trace", "client,start,end\n0,1,2,3\n", "line 2 of"),
        ("trace", "client,start,end\n0,1\n", "line 2 of"),
        ("trace", "client,start,end\n0,2,1\n", "line 2 of"),
        ("trace", "client,start,end\n", "has no rows"),
        ("trace", "", "is no CSV with columns"),
        ("hardware", "root:x:0:0:secret:/root:/bin/bash\n", "is no CSV of devices"),
        ("hardware", "latency_s\nsecret\n", "line 2 of"),
        ("hardware", "latency_s\n-1\n", "line 2 of"),
        ("hardware", "latency_s\n" + '"' + "s" * 200_000 + '"', "does not fit its header"),
        ("hardware", "latency_s\n" + "1\n" * 100_001, "more than 400,000 numbers"),
    ],
)
def test_what_is_no_table_is_said_in_one_line_that_quotes_nothing(
    tmp_path: Path, key: str, content: str, says: str
) -> None:
    (tmp_path / "table.csv").write_text(content)
    with pytest.raises(UserError) as caught:
        load(tmp_path, key, "table.csv")
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text_or_never_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(33 * 1024**2)
    os.mkfifo(tmp_path / "pipe")
    for path, says in [
        ("/dev/zero", "is no regular file"),
        ("pipe", "is no regular file"),
        (".", "is no regular file"),
        ("none.csv", "there is no file"),
        ("huge", "has more than 32 MiB"),
        ("binary", "is no CSV in UTF-8"),
        ("x" * 5000, "cannot read"),
    ]:
        with pytest.raises(UserError, match=says):
            load(tmp_path, "hardware", path)


def test_a_table_that_fits_no_message_is_refused_before_anybody_waits_for_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "table.csv").write_text("latency_s\n" + "0.25\n" * 2000)
    with pytest.raises(UserError, match="as they travel"):
        check_travels(load(tmp_path, "hardware", "table.csv"))
    (tmp_path / "table.csv").write_text("latency_s\n" + "0.25\n" * 1000)
    check_travels(load(tmp_path, "hardware", "table.csv"))
