"""What a site's policy lets through, what its gate withholds, and the log in which all of it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.broker import Envelope
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import (
    ClientFailed,
    ClientUpdate,
    Evaluation,
    Event,
    Experiment,
    GlobalModel,
    Plan,
    Run,
    Tensors,
    UserError,
)
from fluffle.worker.site import audit
from fluffle.worker.site.audit import AuditLog
from fluffle.worker.site.gate import DAY_S, HOUR_S, Gate
from fluffle.worker.site.policy import SitePolicy

RUN = Run(run_id="run", run_started=1, epoch=1)
STEPS = [{"kind": "clip", "norm": 1.0}, {"kind": "noise", "std": 2.0}]
NOON = 1_800_000_000.0


def plan(*steps: dict[str, Any], **training: Any) -> Plan:
    experiment = Experiment.model_validate(
        {
            "task": {"name": "site.py:Site", "clients": 0},
            "participation": {"residents": ["lab"], "identity": "none"},
            "evaluation": {"every_updates": 0},
            "training": training,
            **({"update": list(steps)} if steps else {}),
        }
    )
    return Plan.of(experiment, "delta")


def test_a_policy_takes_no_run_whose_updates_it_could_not_look_at() -> None:
    secure = Experiment.model_validate({"secure_aggregation": {}, "admission": {"norm_factor": 0}})
    asked = Plan.of(secure, "delta", helper_key="0" * 64)
    assert "secure_aggregation masks it" in SitePolicy().objection_to(asked)
    assert SitePolicy().objection_to(Plan.of(Experiment(), "delta")) == ""


class Site:
    """A gate on an embedded broker, whose clock stands until it is moved."""

    def __init__(self, folder: Path, policy: dict[str, Any] | None = None) -> None:
        self.now = NOON
        self.broker = EmbeddedBroker()
        self.leader = self.broker.aggregator()
        self.leader.lead(1.0)
        self.leader.consume(10_000)
        self.policy = SitePolicy.model_validate(policy or {})
        self.path = folder / "audit.jsonl"
        self.start()

    def start(self) -> None:
        self.log = AuditLog(self.path)
        port = self.broker.worker("lab", 0)
        self.gate = Gate(port, self.policy, self.log, clock=lambda: self.now)

    def model(self, version: int = 0, by: Plan | None = None) -> None:
        tensors = {"trainable/0": np.zeros(4, np.float32)}
        model = GlobalModel(run=RUN, version=version, plan=by or plan(), tensors=tensors)
        self.leader.publish_model(Envelope.of(model))
        assert self.gate.wait_model(None, 1.0) is not None

    def send(self, version: int = 0, **tensors: Any) -> str:
        """Submit an update; why it was withheld."""
        named: Tensors = {
            name.replace("__", "/"): np.asarray(value, np.float32)
            for name, value in (tensors or {"trainable__0": [0.5, 0, 0, 0]}).items()
        }
        update = ClientUpdate(
            run=RUN,
            update_id=f"run:lab:{version}:0",
            **{"client": "lab", "turn": 1, "base_version": version, "worker": "lab"},
            **{"sends": "delta", "examples": 1, "tensors": named},
        )
        self.gate.submit(Envelope.of(update))
        return self.last("withheld").get("why", "")

    def last(self, what: str) -> dict[str, Any]:
        (entry,) = [*audit.read(self.path)][-1:]
        return entry if entry["what"] == what else {}

    def arrived(self) -> int:
        count = 0
        while self.leader.receive(0.0) is not None:
            count += 1
        return count


def test_what_nothing_is_said_about_passes_and_all_of_it_is_in_the_log(tmp_path: Path) -> None:
    # Given a site without a word on anything
    site = Site(tmp_path)
    site.model()
    # When it joins, sends an update and a failure
    site.gate.emit(Envelope.of(Event(run=RUN, kind="joined", worker="lab")))
    assert site.send() == ""
    failed = ClientFailed(
        run=RUN,
        update_id="run:lab:1:0",
        **{"client": "lab", "turn": 1, "base_version": 1, "worker": "lab", "reason": "ValueError"},
    )
    site.gate.submit(Envelope.of(failed))
    # Then they are with the broker, and the log says what and when, before and after
    assert site.arrived() == 3
    whats = [entry["what"] for entry in audit.read(site.path)]
    assert whats == ["begin", "received", "event", *["sending", "confirmed"] * 2]


@pytest.mark.parametrize(
    ("policy", "steps", "why"),
    [
        ({"steps": {"clip_norm": 1.0}}, [], "wants updates clipped at 1 or less"),
        ({"steps": {"clip_norm": 0.5}}, STEPS, "wants updates clipped at 0.5 or less"),
        ({"steps": {"noise_std": 2.5}}, STEPS, "wants noise of standard deviation 2.5"),
        (
            {"steps": {"clip_norm": 1.0, "noise_std": 1.0}, "privacy": {"epsilon": 50.0}},
            STEPS[::-1],
            "clipping before noise",
        ),
    ],
)
def test_a_run_that_does_less_than_the_policy_wants_gets_nothing(
    tmp_path: Path, policy: dict[str, Any], steps: list[dict[str, Any]], why: str, said: list[str]
) -> None:
    # Given
    site = Site(tmp_path, policy)
    # When a model with such a plan comes, and code of the site sends an update all the same
    site.model(by=plan(*steps))
    assert why in site.gate.objection_to(
        GlobalModel(run=RUN, version=0, plan=plan(*steps), tensors={})
    )
    # Then it does not leave, and both logs say why
    assert why in site.send()
    assert site.arrived() == 0
    assert any(why in line for line in said)


def test_an_update_that_is_not_what_its_plan_says_is_withheld(tmp_path: Path) -> None:
    # Given a site that wants clipping, in a run that promises it
    site = Site(tmp_path, {"steps": {"clip_norm": 1.0}, "tensors": {"may_leave": ["trainable/*"]}})
    site.model(by=plan(STEPS[0]))
    # When an update is longer, has other tensors, or is of a model that nobody has seen
    assert "not clipped" in site.send(trainable__0=[3, 0, 0, 0])
    assert "does not let non_trainable/0 leave" in site.send(non_trainable__0=[0])
    assert "did not come through here" in site.send(version=7)
    # Or is no message of a site at all
    evaluation = Evaluation(run=RUN, version=0, worker="lab", metrics={"accuracy": 1.0}, examples=1)
    site.gate.submit(Envelope.of(evaluation))
    assert "sends no evaluation" in site.last("withheld")["why"]
    site.gate.submit(Envelope(b"\x00rows of patients", "client-update"))
    assert "no message of ours" in site.last("withheld")["why"]
    # Then none of them leaves, and what is as it should be does
    assert site.arrived() == 0
    assert site.send() == ""
    assert site.arrived() == 1


def test_budgets_hold_over_restarts_and_come_back_with_time(tmp_path: Path) -> None:
    # Given a site that sends two updates an hour, and some bytes a day
    site = Site(tmp_path, {"traffic": {"updates_an_hour": 2}})
    site.now = float(next(iter(audit.read(site.path)))["at"])
    site.model()
    assert site.send() == ""
    site.gate.close()
    site.log.close()
    site.start()  # whatever is restarted
    site.model()
    assert site.send() == ""
    # When it would send a third
    assert "2 updates an hour are sent" in site.send()
    # Then it does not even take a model
    assert site.gate.wait_model(None, 0.0) is None
    # Until an hour has passed
    site.now += HOUR_S + 60
    assert site.gate.wait_model(None, 1.0) is not None
    assert site.send() == ""
    assert site.arrived() == 3


def test_bytes_of_a_day_are_counted(tmp_path: Path) -> None:
    # Given a site that may send one update and a half a day
    free = Site(tmp_path / "free")
    free.model()
    free.send()
    size = [*audit.read(free.path)][-2]["bytes"]
    site = Site(tmp_path / "held", {"traffic": {"bytes_a_day": size * 3 // 2}})
    site.now = float(next(iter(audit.read(site.path)))["at"])
    site.model()
    # Then a second one waits for the next day
    assert site.send() == ""
    assert "bytes a day" in site.send()
    site.now += DAY_S + 60
    assert site.send() == ""


def test_epsilon_is_of_all_runs_together(tmp_path: Path) -> None:
    # Given a site whose every update costs rho = (2 * 1 / 2)^2 / 2 = 0.5
    policy = {
        "steps": {"clip_norm": 1.0, "noise_std": 2.0},
        "privacy": {"epsilon": 9.0, "delta": 1e-5},
    }
    site = Site(tmp_path, policy)
    site.model(by=plan(*STEPS))
    # Then the second is within 9: 1 + 2 sqrt(ln(1e5)) = 7.79; and the third not: 9.81
    assert site.policy.epsilon_of(1.0) == pytest.approx(7.786, abs=1e-3)
    assert site.send() == ""
    site.gate.close()
    site.log.close()
    site.start()
    site.model(by=plan(*STEPS))
    assert site.send() == ""
    assert "epsilon would be 9.81, and the policy's is 9" in site.send()
    # And what gets no noise does not leave
    assert "gets no noise" in site.send(non_trainable__0=[0])
    assert site.arrived() == 2


@pytest.mark.parametrize(
    ("hours", "at", "opens"),
    [
        ("22:00-06:00", "23:00", True),
        ("22:00-06:00", "05:59", True),
        ("22:00-06:00", "06:00", False),
        ("08:00-18:00", "12:00", True),
        ("08:00-18:00", "18:00", False),
    ],
)
def test_outside_its_hours_a_site_neither_trains_nor_sends(
    tmp_path: Path, hours: str, at: str, opens: bool
) -> None:
    from datetime import datetime

    site = Site(tmp_path, {"hours": {"open": "00:00-23:59"}})
    site.now = datetime.fromisoformat("2026-11-23T12:00").timestamp()
    site.model()
    site.gate._policy = SitePolicy.model_validate({"hours": {"open": hours}})
    site.now = datetime.fromisoformat(f"2026-11-24T{at}").timestamp()
    assert (site.gate.wait_model(None, 0.0) is not None) == opens
    assert (site.send() == "") == opens


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[trafic]\n", "trafic: Extra inputs"),
        ("[privacy]\nepsilon = 1.0\n", "needs clip_norm and noise_std"),
        ('[hours]\nopen = "late"\n', "hours are like 22:00-06:00"),
        ('[tasks]\nsha256 = ["abc"]\n', "64 digits"),
        ("[steps\n", "is no valid TOML"),
    ],
)
def test_a_policy_with_a_slip_in_it_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        SitePolicy.read(file)
    assert "\n" not in str(caught.value)


# ---- the log


def edited(lines: list[dict[str, Any]]) -> None:
    lines[2]["bytes"] = 99


def rehashed(lines: list[dict[str, Any]]) -> None:
    lines[2]["bytes"] = 99
    lines[2]["sha256"] = audit._hash(lines[2])


def removed(lines: list[dict[str, Any]]) -> None:
    del lines[3]


def added(lines: list[dict[str, Any]]) -> None:
    lines.insert(2, dict(lines[1]))


def moved(lines: list[dict[str, Any]]) -> None:
    lines[1], lines[2] = lines[2], lines[1]


@pytest.mark.parametrize("edit", [edited, rehashed, removed, added, moved])
def test_every_edit_of_the_log_is_found(
    tmp_path: Path, edit: Callable[[list[dict[str, Any]]], None]
) -> None:
    # Given a log
    log = AuditLog(tmp_path / "audit.jsonl")
    for number in range(5):
        log.add("sending", bytes=number)
    log.close()
    assert audit.verify(log.path)[0] == 6
    # When somebody edits it
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    edit(lines)
    log.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # Then it is said where
    with pytest.raises(UserError, match=r"audit\.jsonl: line \d"):
        audit.verify(log.path)
    with pytest.raises(UserError):
        AuditLog(log.path)


def test_what_is_cut_off_at_the_end_is_missed_by_who_kept_the_head(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.add("sending", bytes=1)
    _, head = audit.verify(log.path)
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text("".join(lines[:-1]))
    audit.verify(log.path)
    with pytest.raises(UserError, match="its end was cut off"):
        audit.verify(log.path, head)
    # But a line that a power cut left half written is removed, and that is in the log
    log.path.write_text("".join(lines) + '{"n": 2, "at"')
    again = AuditLog(log.path)
    assert [*again.entries()][-1]["cut_short"] == 13
    assert audit.verify(log.path, head)[0] == 3
