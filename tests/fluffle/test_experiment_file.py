"""The experiment file as people write it: what wins, and what a mistake says."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluffle.experiment_file import load_experiment
from fluffle.schemas import UserError

ROOT = Path(__file__).parents[2]


def written(folder: Path, text: str) -> Path:
    path = folder / "experiment.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda p: p.stem
)
def test_every_experiment_of_ours_is_valid(path: Path) -> None:
    assert load_experiment(path).experiment.name == path.stem


def test_set_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[aggregation]\nquorum = 1\ndeadline_s = 1\n[task]\nclients = 9")
    environment = {
        "FLUFFLE_AGGREGATION__QUORUM": "2",
        "FLUFFLE_AGGREGATION__DEADLINE_S": "2.5",
        "FLUFFLE_DATA": "/somewhere",
        "OTHER__THING": "1",
    }
    experiment = load_experiment(path, ["aggregation.quorum=3"], environment)
    assert experiment.aggregation.quorum == 3
    assert experiment.aggregation.deadline_s == 2.5
    assert experiment.task.clients == 9


def test_values_are_read_as_toml_and_else_as_strings(tmp_path: Path) -> None:
    settings = ["participation.pause_s=[1.0, 3.0]", "training.optimizer=sgd", "task.name='x y'"]
    experiment = load_experiment(written(tmp_path, ""), settings)
    assert experiment.participation.pause_s == (1.0, 3.0)
    assert experiment.training.optimizer == "sgd"
    assert experiment.task.name == "x y"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[aggregation]\nquorom = 3", "unknown key aggregation.quorom; did you mean aggregation.q"),
        ("[agregation]\nquorum = 3", "unknown key agregation; did you mean aggregation?"),
        ("[devices]\ndroput = 0.3", "unknown key devices.droput; did you mean devices.dropout?"),
        ("[cost]\ncurrency = 'EUR'", "cost.price_per_worker_hour is missing"),
        ("[aggregation]\nzzz = 3", "unknown key aggregation.zzz; known are strategy"),
        (
            "[aggregation]\nquorum = 'three'",
            "aggregation.quorum = 'three': Input should be a",
        ),
        ("[training]\nepochs = 0", "training.epochs = 0: Input should be greater than"),
        ("[aggregation]\nstrategy = 'best'", "aggregation.strategy = 'best' is none of fed"),
        ("[aggregation]\nquorum = 11", "quorum = 11 can never be reached: at most 10 clients"),
        (
            "[participation]\nconcurrency = 2\n[aggregation]\nquorum = 3",
            "at most 2 clients are in flight",
        ),
        (
            "[participation]\nmode = 'cohort'\nsampling_rate = 0.3\n[aggregation]\nquorum = 4",
            "can never be reached: at most 3 clients",
        ),
        ("[aggregation]\nstrategy = 'fedasync'\nquorum = 2", "fedasync makes a version of every"),
        ("[aggregation]\ndeterministic = true", "deterministic needs participation.mode"),
        ("aggregation = 3", "aggregation = 3: Input should be a valid dictionary"),
        ("[aggregation", "is no valid TOML"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_experiment(written(tmp_path, text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_without_a_table_says_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"write TABLE\.KEY=VALUE"):
        load_experiment(written(tmp_path, ""), ["quorum=3"])


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no experiment file"):
        load_experiment(tmp_path / "none.toml")


def test_a_file_as_windows_editors_save_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_bytes("[task]\r\nclients = 9\r\n".encode("utf-8-sig"))
    assert load_experiment(path).task.clients == 9


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_file_in_utf_16_is_refused_with_what_to_do(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_bytes("\ufeff[task]\nclients = 9".encode(encoding))
    with pytest.raises(UserError, match="is UTF-16, and TOML is UTF-8: save it as UTF-8"):
        load_experiment(path)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("training.optimizer=adma", r"training\.optimizer = 'adma' .* did you mean adam\?"),
        ("training.optimizer=SGDD", r"did you mean sgd\?"),
        (
            "aggregation.qorum=5",
            r"unknown key aggregation\.qorum; did you mean aggregation\.quorum",
        ),
        ("agregation.quorum=5", r"unknown key agregation; did you mean aggregation\?"),
        ("quorum=5", r"write TABLE\.KEY=VALUE, as in aggregation\.quorum=5"),
        ("learning_rte=5", r"write TABLE\.KEY=VALUE, as in training\.learning_rate=5"),
        ("participation.mode=cohrt", r"did you mean cohort\?"),
    ],
)
def test_a_typo_is_met_with_what_was_meant(setting: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_experiment(None, [setting])


@pytest.mark.parametrize("name", ["AdamW", "rmsprop", "my_package>Mine"])
def test_optimizers_of_keras_and_of_ones_own_are_none_of_our_business(name: str) -> None:
    assert load_experiment(None, [f"training.optimizer={name}"]).training.optimizer == name
