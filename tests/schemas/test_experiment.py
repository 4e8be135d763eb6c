"""The experiment file: defaults, bounds, and what cannot go together."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fluffle.schemas import Experiment, GlobalModel, Plan, Run, decode, encode


def read(toml: str) -> Experiment:
    return Experiment.model_validate(tomllib.loads(toml))


def complaint(toml: str) -> str:
    """The first thing that is wrong: where, and why."""
    with pytest.raises(ValidationError) as caught:
        read(toml)
    first = caught.value.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def test_an_empty_file_is_mnist_with_ten_clients_and_a_quorum_of_three() -> None:
    experiment = read("")
    assert (experiment.task.name, experiment.task.clients) == ("mnist-mlp", 10)
    assert (experiment.experiment.seed, experiment.experiment.versions) == (42, 100)
    assert (experiment.concurrency, experiment.quorum) == (10, 3)
    assert experiment.aggregation.strategy == "fedbuff"
    assert experiment.aggregation.deadline_s == 10


@pytest.mark.parametrize(
    ("toml", "where", "why"),
    [
        ("[task]\nclient = 3", "task.client", "Extra inputs are not permitted"),
        ("[aggregatoin]\nquorum = 3", "aggregatoin", "Extra inputs are not permitted"),
        ("clients = 3", "clients", "Extra inputs are not permitted"),
        ("task = 3", "task", "valid dictionary"),
        ("[task]\nclients = 'ten'", "task.clients", "valid integer"),
        ("[task]\nclients = '10'", "task.clients", "valid integer"),
        ("[task]\nclients = true", "task.clients", "valid integer"),
        ("[task]\nclients = 10.0", "task.clients", "valid integer"),
        ("[task]\nclients = -1", "task.clients", "greater than or equal to 0"),
        ("[task]\nname = 3", "task.name", "valid string"),
        ("[experiment]\nname = '../x'", "experiment.name", "match pattern"),
        ("[experiment]\nseed = -1", "experiment.seed", "greater than or equal to 0"),
        ("[experiment]\nseed = 4294967296", "experiment.seed", "less than"),
        ("[experiment]\ntarget_accuracy = 97", "experiment.target_accuracy", "less than or equal"),
        ("[training]\nlearning_rate = '0.1'", "training.learning_rate", "valid number"),
        ("[training]\nlearning_rate = nan", "training.learning_rate", "finite"),
        ("[training]\nepochs = 99999999999999999999", "training.epochs", "less than or equal"),
        ("[training]\nmomentum = nan", "training.momentum", "less than 1"),
        ("[participation]\nmode = 'async'", "participation.mode", "'concurrent' or 'cohort'"),
        ("[participation]\nover_selection = inf", "participation.over_selection", "finite"),
        ("[participation]\nsampling_rate = nan", "participation.sampling_rate", "less than or"),
        ("[participation]\npause_s = 3", "participation.pause_s", "valid tuple"),
        ("[participation]\npause_s = [3]", "participation.pause_s.1", "Field required"),
        ("[participation]\npause_s = [1, -1]", "participation.pause_s.1", "greater than or equal"),
        ("[aggregation]\nstaleness = 'cubic'", "aggregation.staleness", "'hinge'"),
        (
            "[aggregation]\nstrategy = 'fedasync'\nmixing = 0",
            "aggregation.mixing",
            "greater than 0",
        ),
        ("[partition]\nkind = 'dirichlet'\nalpha = 0.0", "partition.alpha", "greater than 0"),
        ("[participation]\nresidents = ['a.b']", "participation.residents.0", "match pattern"),
        ("[participation]\nidentity = 'tls'", "participation.identity", "'broker' or 'none'"),
    ],
)
def test_a_key_that_is_wrong_is_named_with_the_reason(toml: str, where: str, why: str) -> None:
    told = complaint(toml)
    assert told.startswith(f"{where}: ")
    assert why in told


@pytest.mark.parametrize(
    ("toml", "why"),
    [
        (
            "[task]\nclients = 5\n[aggregation]\nquorum = 6",
            "quorum = 6 can never be reached: at most 5 clients are in flight (task.clients, part",
        ),
        (
            "[participation]\nconcurrency = 2\n[aggregation]\nquorum = 3",
            "at most 2 clients are in flight",
        ),
        (
            "[participation]\nmode = 'cohort'\nsampling_rate = 0.3\n[aggregation]\nquorum = 4",
            "at most 3 clients are in flight (task.clients, participation.sampling_rate)",
        ),
        ("[aggregation]\nmin_updates = 4", "min_updates is larger than the quorum"),
        ("[aggregation]\nstrategy = 'fedasync'\nquorum = 2", "fedasync makes a version of every"),
        ("[aggregation]\ndeterministic = true", "needs participation.mode = 'cohort'"),
        ("[participation]\npause_s = [2, 1]", "pause_s is [low, high]"),
        ("[training]\noptimizer = 'sgd'\nnesterov = true", "nesterov needs training.momentum"),
        (
            "[training]\nsteps = 5\nepochs = 2",
            "training.epochs counts epochs, which training.steps",
        ),
        ("[training]\nsteps = 5\nengine = 'jax'", "training.engine = 'jax' counts epochs"),
        ("[training]\nsteps = 5\n[devices]\npreset = 'phones'", "devices.stragglers counts epochs"),
        ("[task]\nclients = 0", "task.clients = 0 leaves nobody to train: give the number of"),
        ("[participation]\nresidents = ['7']", "'7' is a number, as pooled clients are"),
        ("[participation]\nresidents = ['a', 'b', 'a']", "names a client twice"),
        ("[participation]\nmode = 'cohort'\nresidents = ['a']", "nobody can choose them"),
        (
            "[task]\nclients = 0\n[participation]\nresidents = ['a']\n[aggregation]\nquorum = 2",
            "at most 1 clients are in flight (task.clients, participation.concurrency, part",
        ),
    ],
)
def test_what_cannot_go_together_is_said_with_the_keys_to_change(toml: str, why: str) -> None:
    assert why in complaint(toml)


@pytest.mark.parametrize(
    ("toml", "concurrency", "quorum"),
    [
        ("[task]\nclients = 2", 2, 2),
        ("[task]\nclients = 100\n[participation]\nconcurrency = 20", 20, 3),
        ("[participation]\nconcurrency = 99", 10, 3),
        ("[aggregation]\nstrategy = 'fedasync'", 10, 1),
        ("[participation]\nmode = 'cohort'", 10, 10),
        ("[participation]\nmode = 'cohort'\nsampling_rate = 0.3\nover_selection = 1.5", 5, 3),
        ("[participation]\nmode = 'cohort'\nsampling_rate = 0.001", 1, 1),
        ("[participation]\nmode = 'cohort'\nover_selection = 3", 10, 10),
        ("[participation]\nmode = 'cohort'\nsampling_rate = 0.1\nover_selection = 1.1", 2, 1),
        ("[task]\nclients = 0\n[participation]\nresidents = ['a', 'b']", 0, 2),
        ("[task]\nclients = 1\n[participation]\nresidents = ['a', 'b', 'c']", 1, 3),
    ],
)
def test_concurrency_and_quorum_follow_from_the_other_keys(
    toml: str, concurrency: int, quorum: int
) -> None:
    experiment = read(toml)
    assert (experiment.concurrency, experiment.quorum) == (concurrency, quorum)


@given(
    st.integers(1, 10_000),
    st.floats(0, 1, exclude_min=True),
    st.floats(1, 100),
    st.sampled_from(["cohort", "concurrent"]),
    st.sampled_from(["fedavg", "fedbuff", "fedasync"]),
)
def test_the_default_quorum_can_always_be_reached(
    clients: int, rate: float, over: float, mode: str, strategy: str
) -> None:
    document: dict[str, Any] = {
        "task": {"clients": clients},
        "participation": {
            "mode": mode,
            **({"sampling_rate": rate, "over_selection": over} if mode == "cohort" else {}),
        },
        "aggregation": {"strategy": strategy},
    }
    experiment = Experiment.model_validate(document)
    assert 1 <= experiment.quorum <= experiment.concurrency <= clients


def test_an_experiment_survives_its_own_json_and_toml_lists_are_ranges() -> None:
    experiment = read("[participation]\npause_s = [1, 2]\n[training]\nlearning_rate = 1")
    assert experiment.participation.pause_s == (1.0, 2.0)
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment
    assert Experiment.model_validate(experiment.model_dump(mode="json")) == experiment


def test_the_plan_is_the_part_that_clients_need() -> None:
    experiment = read("[experiment]\nseed = 5\n[participation]\npause_s = [1, 2]")
    plan = Plan.of(experiment, "weights")
    assert (plan.seed, plan.sends, plan.pause_s) == (5, "weights", (1.0, 2.0))
    assert (plan.task, plan.training) == (experiment.task, experiment.training)
    assert not hasattr(plan, "aggregation")
    assert (plan.residents, plan.identity) == (None, None)


def test_the_allow_list_and_the_demand_for_identity_travel_with_the_plan() -> None:
    sites = "[participation]\nresidents = ['hospital-7', 'b']"
    plan = Plan.of(read(sites), "delta")
    assert plan.identity == "broker"
    assert [plan.admits(name) for name in ("hospital-7", "b", "hospital", "")] == [
        *(True, True, False, False)
    ]
    assert Plan.of(read(sites + "\nidentity = 'none'"), "delta").identity is None


def test_the_longest_allow_list_fits_into_a_message() -> None:
    # Given as many sites as there may be, with the longest names
    names = [f"{number:04}".ljust(64, "x") for number in range(500)]
    experiment = Experiment.model_validate({"participation": {"residents": names}})
    # When their plan travels
    run = Run(run_id="run", run_started=1, epoch=1)
    model = GlobalModel(run=run, version=0, plan=Plan.of(experiment, "delta"), tensors={})
    arrived = decode(encode(model))
    # Then it arrives whole
    assert arrived == model
    assert model.plan.admits(names[-1])


def test_what_decides_is_a_part_of_the_training_examples() -> None:
    # Given an experiment that an evaluation may end
    for stop in ({"target_accuracy": 0.9}, {"patience": 3}):
        made = Experiment.model_validate({"experiment": stop})
        # Then its clients train on nine tenths, and that is written down with it
        assert made.task.validation == 0.1
        assert Experiment.stored(made.model_dump_json()) == made
        assert Plan.of(made, "delta").task.validation == 0.1
        # And whoever wants the test examples to decide says so
        table = {"experiment": stop, "task": {"validation": 0.0}}
        assert Experiment.model_validate(table).task.validation == 0
        # A run of sites has no pooled examples to take it from
        sites = {"task": {"clients": 0}, "participation": {"residents": ["a"]}}
        assert Experiment.model_validate({"experiment": stop, **sites}).task.validation is None
    # Others are as they were, and so are those that were written down before
    plain = Experiment.model_validate({})
    assert plain.task.validation is None
    assert "validation" not in plain.model_dump_json()
    old = '{"experiment": {"target_accuracy": 0.9}}'
    assert Experiment.stored(old).task.validation is None
    with pytest.raises(ValidationError, match=r"give the task a validation\(\)"):
        Experiment.model_validate(
            {"task": {"clients": 0, "validation": 0.2}, "participation": {"residents": ["a"]}}
        )
