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
        ("[aggregation]\nstrategy = 'best'", "aggregation.strategy = 'best' is none of ca2"),
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


def test_a_setting_without_a_value_takes_the_key_out_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[participation]\nconcurrency = 5\n[task]\nclients = 9")
    cohort = ["participation.mode=cohort", "participation.sampling_rate=0.5"]
    with pytest.raises(UserError, match=r"concurrency goes with participation\.mode"):
        load_experiment(path, cohort)
    experiment = load_experiment(path, [*cohort, "participation.concurrency=", "task.seeds="])
    assert (experiment.participation.concurrency, experiment.quorum) == (None, 4)


#: A table, the choice that stands in it, and a key that says nothing then.
STRANGERS = [
    ("aggregation", "strategy = 'median'", "trim = 0.1"),
    ("aggregation", "strategy = 'fedbuff'", "norm_bound = 1.0"),
    ("aggregation", "strategy = 'fedbuff'", "weighting = 'uniform'"),
    ("aggregation", "strategy = 'fedavg'", "mixing = 0.5"),
    ("aggregation", "strategy = 'fedavg'", "server_learning_rate = 0.5"),
    ("aggregation", "strategy = 'fedavgm'", "server_beta_2 = 0.9"),
    ("aggregation", "strategy = 'fedadagrad'", "server_beta_2 = 0.9"),
    ("aggregation", "strategy = 'krum'", "krum_selected = 2"),
    ("aggregation", "strategy = 'fedasync'", "server_optimizer = 'adam'"),
    ("aggregation", "strategy = 'ringmaster'", "server_beta_1 = 0.5"),
    ("aggregation", "strategy = 'scaffold'", "staleness = 'hinge'"),
    ("aggregation", "strategy = 'fednova'", "server_learning_rate = 0.5"),
    ("aggregation", "strategy = 'ca2fl'", "delay_threshold = 3"),
    ("aggregation", "strategy = 'my.py:Mine'", "max_cache_mb = 3"),
    ("aggregation", "server_optimizer = 'momentum'", "server_tau = 0.1"),
    ("aggregation", "staleness = 'polynomial'", "staleness_b = 2"),
    ("partition", "kind = 'iid'", "alpha = 0.5"),
    ("partition", "kind = 'dirichlet'", "shards_per_client = 2"),
    ("partition", "kind = 'contiguous'", "exponent = 1.0"),
    ("partition", "kind = 'shards'", "similarity = 10"),
    ("participation", "mode = 'cohort'", "concurrency = 3"),
    ("participation", "mode = 'concurrent'", "sampling_rate = 0.5"),
    ("participation", "mode = 'concurrent'", "over_selection = 1.5"),
    ("training", "optimizer = 'adam'", "momentum = 0.9"),
    ("training", "optimizer = 'RMSprop'", "nesterov = true"),
    ("task", "name = 'mnist-mlp'", "synthetic_alpha = 0.5"),
    ("task", "name = 'digits-lr'", "synthetic_iid = true"),
    ("devices", "availability = 'always'", "period_s = 10"),
    ("devices", "availability = 'diurnal'", "on_s = 10"),
    ("devices", "availability = 'on_off'", "trace = 'trace.csv'"),
    ("devices", "preset = 'article'", "available = 0.5"),
    ("devices", "delay = 'constant'", "delay_shape = 2"),
    ("devices", "stragglers = 0.5", "delay_s = 2"),
    ("devices", "stragglers = 0.5", "dropout_at = 'upload'"),
    ("devices", "stragglers = 0.5", "byzantine_scale = 2"),
    ("devices", "hardware = 'devices.csv'", "latency_s = 2"),
]


@pytest.mark.parametrize(("table", "choice", "key"), STRANGERS)
def test_a_key_that_the_choice_does_not_use_is_refused(
    tmp_path: Path, table: str, choice: str, key: str
) -> None:
    (tmp_path / "trace.csv").write_text("client,start,end\n0,0,1\n")
    columns = "seconds_per_example,latency_s,download_bytes_per_s,upload_bytes_per_s"
    (tmp_path / "devices.csv").write_text(f"{columns}\n0.1,0.1,1000,1000\n")
    with pytest.raises(UserError) as caught:
        load_experiment(written(tmp_path, f"[{table}]\n{choice}\n{key}"))
    assert f"{table}.{key.split(' ')[0]} " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_goes_with_what_a_preset_has_chosen(tmp_path: Path) -> None:
    text = "[devices]\npreset = 'phones'\nperiod_s = 60\ndelay_shape = 0.5\ndropout_at = 'upload'"
    devices = load_experiment(written(tmp_path, text)).devices
    assert devices is not None
    assert (devices.period_s, devices.effective("availability")) == (60, "diurnal")


def test_a_misspelt_key_of_a_strategy_is_told_from_the_keys_of_that_strategy(
    tmp_path: Path,
) -> None:
    text = "[aggregation]\nstrategy = 'trimmed-mean'\ntrimm = 0.1"
    with pytest.raises(UserError, match=r"did you mean aggregation\.trim\?"):
        load_experiment(written(tmp_path, text))


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
