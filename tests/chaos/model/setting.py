"""What a schedule's run is like: an experiment and who works on it, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from schemas import Experiment


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


def draw(seed: int) -> Setting:
    """A small run of any kind."""
    random = Random(f"setting {seed}")
    pick = random.choice
    clients = random.randint(1, 6)
    mode = random.choices(("concurrent", "cohort", "deterministic"), (3, 2, 1))[0]
    participation: dict[str, Any] = {"assignment_deadline_s": pick((3.0, 10.0, 100.0))}
    aggregation: dict[str, Any] = {
        "strategy": pick(("fedbuff", "fedbuff", "fedavg", "fedasync", "fedadam", "median")),
        "deadline_s": pick((1.0, 3.0, 10.0)),
        "hold_s": pick((0.3, 2.0, 60.0)),
        "keep_versions": pick((1, 3)),
        "staleness": pick(("constant", "polynomial", "hinge")),
        "staleness_b": 1.0,
        "keep_updates": pick((False, False, False, True)),
    }
    if mode == "concurrent":
        in_flight = random.randint(1, clients)
        participation["concurrency"] = in_flight
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
        quorum = random.randint(1, in_flight)
        aggregation |= {"quorum": quorum, "min_updates": random.randint(1, quorum)}
    if aggregation["strategy"] == "fedbuff":
        aggregation["server_optimizer"] = pick((None, None, "momentum", "adam"))
    if mode != "deterministic":
        aggregation["on_deadline"] = pick(("step", "step", "step", "extend", "abort"))
    tables = {
        "experiment": {"versions": random.randint(3, 5), "seed": random.randrange(1000)},
        "task": {"clients": clients},
        "participation": participation,
        "aggregation": aggregation,
        "evaluation": {"every_updates": pick((0, 0, 3))},
    }
    if random.random() < 0.1:
        tables["experiment"]["target_accuracy"] = 0.5
    aggregators = pick((1, 1, 2))
    return Setting(
        Experiment.model_validate(tables),
        aggregators=aggregators,
        workers=tuple(random.randint(1, 2) for _ in range(random.randint(1, 3))),
        max_prefetch=pick((2, 3, 4, 64)),
        failing=pick((0, 0, 0, 7)),
        train_s=pick((0.2, 1.0, 4.0, 8.0)),
        as_bytes=pick((False, False, True)),
        resumes=aggregators == 1 and pick((False, True)),
    )
