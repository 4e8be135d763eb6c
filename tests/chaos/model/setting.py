"""What a schedule's run is like: an experiment and who works on it, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from fluffle.schemas import Experiment
from fluffle.schemas.steps import remembers

#: What is done to an update before it leaves; of the first kind clients remember something.
_WITH_MEMORY = (
    ({"kind": "top_k", "share": 0.4},),
    ({"kind": "random_k", "share": 0.4},),
    ({"kind": "clip", "norm": 0.3}, {"kind": "top_k", "share": 0.7}, {"kind": "quantise"}),
)
_WITHOUT = (
    None,
    None,
    ({"kind": "quantise", "bits": 8},),
    (
        {"kind": "top_k", "share": 0.4, "error_feedback": False},
        {"kind": "cast", "dtype": "float16"},
    ),
)


@dataclass(frozen=True)
class Setting:
    """One run."""

    experiment: Experiment
    aggregators: int
    #: Slots of each worker.
    workers: tuple[int, ...]
    max_prefetch: int
    #: Every so-many-th training fails; 0 for none.
    failing: int
    train_s: float
    #: Messages travel as bytes.
    as_bytes: bool
    #: Somebody starts the run again where it was aborted, or failed.
    resumes: bool
    #: Version 0 is given to the aggregator.
    initial: bool
    #: Where clients keep state: workers have a folder in common, or each its own memory.
    states: Literal["none", "shared", "own"]
    #: Sites wait for the next run when one is over.
    sites_stay: bool


def draw(seed: int) -> Setting:
    """A small run of any kind."""
    random = Random(f"setting {seed}")
    pick = random.choice
    kind = random.choices(("pooled", "beside", "sites", "stateful"), (5, 2, 2, 2))[0]
    sites = random.randint(1, 3) if kind in ("beside", "sites") else 0
    clients = 0 if kind == "sites" else random.randint(1, 6)
    modes = ("concurrent", "cohort", "deterministic")
    mode = "concurrent" if sites else random.choices(modes, (3, 2, 1))[0]
    participation: dict[str, Any] = {"assignment_deadline_s": pick((3.0, 10.0, 100.0, None))}
    strategies = ("fedbuff", "fedbuff", "fedavg", "fedasync", "fedadam", "median")
    if kind == "stateful":
        strategies = ("fedbuff", "fedavg", "fedadam", "median", "scaffold", "scaffold")
    aggregation: dict[str, Any] = {
        "strategy": pick(strategies),
        "deadline_s": pick((1.0, 3.0, 10.0)),
        "hold_s": pick((0.3, 2.0, 60.0)),
        "keep_versions": pick((1, 3)),
        "staleness": pick(("constant", "polynomial", "hinge")),
        "staleness_b": 1.0,
        "keep_updates": pick((False, False, False, True)),
    }
    if mode == "concurrent":
        in_flight = sites
        if clients:
            participation["concurrency"] = random.randint(1, clients)
            in_flight += participation["concurrency"]
        if sites:
            names = [f"site-{number}" for number in range(sites)]
            participation |= {"residents": names, "identity": "none"}
        aggregation["max_staleness"] = pick((None, None, 0, 1, 3))
    else:
        participation |= {"mode": "cohort", "sampling_rate": pick((1.0, 1.0, 0.5))}
        if mode == "cohort":
            participation["over_selection"] = pick((1.0, 1.5))
        in_flight = Experiment.model_validate(
            {"task": {"clients": clients}, "participation": participation}
        ).concurrency
    if mode == "deterministic":
        participation["assignment_deadline_s"] = pick((30.0, 100.0, 100.0))
        aggregation |= {"deterministic": True, "on_deadline": "extend", "quorum": in_flight}
        if aggregation["strategy"] == "fedasync" and in_flight > 1:
            aggregation["strategy"] = "fedavg"
    elif aggregation["strategy"] == "fedasync":
        aggregation["quorum"] = 1
    else:
        quorum = random.randint(max(1, sites), in_flight)
        aggregation |= {"quorum": quorum, "min_updates": random.randint(1, quorum)}
    if aggregation["strategy"] == "median" and aggregation["quorum"] < 3:
        aggregation["byzantine_updates"] = 0
    if aggregation["strategy"] == "fedbuff":
        aggregation["server_optimizer"] = pick(("sgd", "sgd", "momentum", "adam"))
    if mode != "deterministic":
        aggregation["on_deadline"] = pick(("step", "step", "step", "extend", "abort"))
    if aggregation["staleness"] != "hinge":
        del aggregation["staleness_b"]
    if aggregation["strategy"] == "scaffold":  # every delta counts the same there
        aggregation = {k: v for k, v in aggregation.items() if not k.startswith("staleness")}
    tables: dict[str, Any] = {
        "experiment": {"versions": random.randint(3, 5), "seed": random.randrange(1000)},
        "task": {"clients": clients},
        "training": {"optimizer": "sgd"},
        "participation": participation,
        "aggregation": aggregation,
        "evaluation": {"every_updates": pick((0, 0, 3))},
    }
    tables["participation"] |= _selection(seed, tables, in_flight)
    tables["aggregation"] |= _trigger(seed, tables)
    listens = tables["evaluation"]["every_updates"] and mode != "deterministic"
    if listens and aggregation["strategy"] != "scaffold" and Random(f"p {seed}").random() < 0.6:
        aggregation["plateau_patience"] = 1
    bounded = mode != "concurrent" or aggregation["max_staleness"] is not None
    if bounded and Random(f"stops {seed}").random() < 0.5:
        tables["participation"]["stop_stale"] = True
    if random.random() < 0.1:
        tables["experiment"]["target_accuracy"] = 0.5
    scaffold = aggregation["strategy"] == "scaffold"
    if kind == "stateful" and not (scaffold and pick((True, False))):
        tables["update"] = pick(_WITH_MEMORY)
    elif aggregation["strategy"] != "fedasync":
        tables["update"] = pick(_WITHOUT)
    experiment = Experiment.model_validate(tables)
    keeps_state = scaffold or remembers(experiment.update or ())
    aggregators = pick((1, 1, 2))
    slots = tuple(random.randint(1, 2) for _ in range(random.randint(1, 3)))
    return Setting(
        experiment,
        aggregators=aggregators,
        workers=slots if clients else (),
        max_prefetch=pick((2, 3, 4, 64)),
        failing=pick((0, 0, 0, 7)),
        train_s=pick((0.2, 1.0, 4.0, 8.0)),
        as_bytes=pick((False, False, True)),
        resumes=aggregators == 1 and pick((False, True)),
        initial=pick((False, True)) if sites else False,
        states=pick(("shared", "shared", "own")) if keeps_state else "none",
        sites_stay=pick((False, True)),
    )


def _selection(seed: int, tables: dict[str, Any], in_flight: int) -> dict[str, Any]:
    """Who is chosen; of draws of its own, so that schedules are those that they were before."""
    random = Random(f"selection {seed}")
    clients = tables["task"]["clients"]
    if not clients:
        return {}
    cohort = tables["participation"].get("mode") == "cohort"
    candidates = random.randint(in_flight if cohort else 1, clients)
    chosen: dict[str, Any] = random.choice(
        (
            {},
            _separated(random, tables, in_flight),
            {"selection": "power-of-choice", "selection_parameters": {"candidates": candidates}},
            {"selection": "oort", "selection_parameters": {"pacer_step_s": 2.0, "window": 1}}
            if not tables["aggregation"].get("deterministic")
            else {},
        )
    )
    return chosen


def _separated(random: Random, tables: dict[str, Any], in_flight: int) -> dict[str, Any]:
    """As far apart as there are clients for."""
    quorum = tables["aggregation"].get("quorum")
    if quorum is None:
        return {}
    cohort = tables["participation"].get("mode") == "cohort"
    everybody = tables["task"]["clients"] + len(tables["participation"].get("residents", ()))
    left = everybody - (in_flight if cohort else quorum)
    separation = random.randint(1, 1 + left // quorum)
    return {"selection": "min-separation", "selection_parameters": {"separation": separation}}


def _trigger(seed: int, tables: dict[str, Any]) -> dict[str, Any]:
    """What closes the buffer; of draws of its own, too."""
    random, aggregation = Random(f"trigger {seed}"), tables["aggregation"]
    separated = tables["participation"].get("selection") == "min-separation"
    if tables["participation"].get("mode") == "cohort" or aggregation["strategy"] == "fedasync":
        return {}
    if separated or random.random() < 0.7:
        return {}
    stalls = not tables["task"]["clients"] and aggregation["on_deadline"] == "extend"
    if random.random() < 0.5 or stalls:
        return {"trigger": "clients"}
    del aggregation["quorum"]
    aggregation["min_updates"] = 1
    return {"trigger": "examples", "trigger_parameters": {"examples": random.randint(1, 80)}}
