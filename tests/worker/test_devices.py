"""Devices: four axes, each a function of (seed, client, turn, time), distributed as stated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fluffle.schemas import Experiment, Plan, Tensors
from fluffle.worker.devices import Devices, as_sent

N = 4000


def devices(epochs: int = 5, seed: int = 42, **table: Any) -> Devices:
    document = {
        "experiment": {"seed": seed},
        "training": {"epochs": epochs},
        "devices": table,
    }
    return Devices(Plan.of(Experiment.model_validate(document), "delta"))


def test_without_any_axis_a_turn_takes_no_time_and_arrives() -> None:
    outcome = devices().outcome("3", 7)
    assert (outcome.epochs, outcome.lost_at, outcome.pause_s) == (5, None, 0.0)
    assert outcome.download_s(10**9) == outcome.train_s(10**6) == outcome.upload_s(10**9) == 0.0
    assert devices().next_start("3", 12.5) == 12.5


def test_the_same_seed_gives_the_same_fate_and_another_turn_another() -> None:
    one, same = (devices(delay="exponential", delay_s=2.0, dropout=0.3) for _ in range(2))
    other = devices(seed=43, delay="exponential", delay_s=2.0, dropout=0.3)
    assert one.outcome("1", 5) == same.outcome("1", 5)
    assert one.outcome("1", 5) != one.outcome("1", 6)
    assert one.outcome("1", 5) != other.outcome("1", 5)


@pytest.mark.parametrize(
    ("distribution", "shape", "std"),
    [
        ("constant", None, 0.0),
        ("uniform", None, 2 / np.sqrt(3)),
        ("exponential", None, 2.0),
        ("half_normal", None, 2 * np.sqrt(np.pi / 2 - 1)),
        ("log_normal", 0.5, 2 * np.sqrt(np.exp(0.25) - 1)),
        ("pareto", 4.0, 2 / np.sqrt(4 * (4 - 2))),
    ],
)
def test_delays_have_the_mean_and_spread_of_their_distribution(
    distribution: str, shape: float | None, std: float
) -> None:
    one = devices(delay=distribution, delay_s=2.0, delay_shape=shape)
    drawn = np.array([one.outcome("0", turn).delay_s for turn in range(N)])
    assert drawn.min() >= 0
    assert drawn.mean() == pytest.approx(2.0, rel=0.06)
    assert drawn.std() == pytest.approx(std, rel=0.15, abs=1e-12)


def test_a_delay_of_the_client_is_the_same_in_every_turn() -> None:
    one = devices(delay="exponential", delay_s=2.0, delay_of="client")
    assert len({one.outcome("4", turn).delay_s for turn in range(20)}) == 1
    assert len({one.outcome(str(client), 0).delay_s for client in range(20)}) == 20


def test_turns_are_lost_with_their_probability_and_where_it_says() -> None:
    anywhere = devices(dropout=0.4)
    places = [anywhere.outcome("0", turn).lost_at for turn in range(N)]
    assert sum(place is not None for place in places) / N == pytest.approx(0.4, abs=0.03)
    assert set(places) == {None, "before_training", "after_training", "upload"}
    upload = devices(dropout=0.4, dropout_at="upload")
    assert {upload.outcome("0", turn).lost_at for turn in range(100)} == {None, "upload"}


def test_stragglers_do_one_to_all_epochs() -> None:
    one = devices(epochs=4, stragglers=0.5)
    epochs = np.array([one.outcome("0", turn).epochs for turn in range(N)])
    shares = np.bincount(epochs, minlength=5)[1:] / N
    assert shares == pytest.approx([0.125, 0.125, 0.125, 0.625], abs=0.03)


def test_time_is_what_hardware_and_network_take() -> None:
    one = devices(
        epochs=3,
        seconds_per_example=0.01,
        latency_s=0.5,
        download_bytes_per_s=100.0,
        upload_bytes_per_s=50.0,
        delay="constant",
        delay_s=1.0,
    ).outcome("0", 0)
    assert one.download_s(1000) == 10.5
    assert one.train_s(20) == pytest.approx(1 + 20 * 3 * 0.01)
    assert one.upload_s(1000) == 20.5


def test_hardware_is_dealt_to_clients() -> None:
    one = devices(hardware="0.1 1 inf inf;0.2 2 1e6 inf")
    dealt = {one.outcome(str(client), 0).hardware.latency_s for client in range(30)}
    assert dealt == {1.0, 2.0}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("hardware", "/etc/passwd"),
        ("hardware", "0.1 1"),
        ("hardware", "-1 0 inf inf"),
        ("hardware", "nan 0 1 1"),
        ("hardware", "0 0 0 1"),
        ("hardware", ""),
        ("trace", "trace.csv"),
        ("trace", "0 10"),
        ("trace", "0 20 10"),
        ("trace", "0.5 10 20"),
        ("trace", "0 10 inf"),
        ("trace", "0 10 20;" * 140_000 + "0 10 20"),
    ],
)
def test_a_table_is_numbers_and_no_file(key: str, text: str) -> None:
    with pytest.raises(ValidationError, match=rf"devices\.{key}"):
        devices(availability="trace" if key == "trace" else None, **{key: text})


def test_diurnal_clients_are_available_for_their_share_and_wait_for_their_time() -> None:
    one = devices(availability="diurnal", period_s=4800.0, available=0.5)
    now = np.arange(0, 48_000, 100.0)
    waits = np.array([one.next_start(str(c), t) - t for c in range(10) for t in now])
    assert waits.min() == 0
    assert waits.max() > 100
    assert (waits == 0).mean() == pytest.approx(0.5, abs=0.1)
    later = one.next_start("1", 300.0)
    assert one.next_start("1", later) == later


@pytest.mark.parametrize("available", [0.3, 0.8, 1.0])
def test_diurnal_clients_are_there_for_the_share_that_is_asked_for(available: float) -> None:
    # Given 80 clients, each with its own phase, at every part of a day
    one = devices(availability="diurnal", period_s=48.0, available=available)
    there = np.array([[one.next_start(str(c), t) == t for t in range(48)] for c in range(80)])
    assert there.mean() == pytest.approx(available, abs=0.025)


@pytest.mark.parametrize("shape", [0.5, 0.8, 1.0])
def test_a_pareto_delay_without_a_mean_is_refused(shape: float) -> None:
    with pytest.raises(ValidationError, match=r"devices\.delay_shape = .* exponent is above 1"):
        devices(delay="pareto", delay_s=2.0, delay_shape=shape)
    # A preset's shape counts as well: phones have a log-normal's sigma of 1
    with pytest.raises(ValidationError, match=r"devices\.delay_shape = 1"):
        devices(preset="phones", delay="pareto")
    log_normal = devices(delay="log_normal", delay_s=2.0, delay_shape=shape)
    assert log_normal.outcome("0", 0).delay_s > 0


def test_pauses_and_availability_are_drawn_independently() -> None:
    # Given a pause on [0, 1], and whether a client is there in that part of its day
    document = {
        "task": {"clients": 60},
        "participation": {"pause_s": [0.0, 1.0]},
        "devices": {"availability": "diurnal", "period_s": 48.0, "available": 0.5},
    }
    one = Devices(Plan.of(Experiment.model_validate(document), "delta"))
    cells = [(str(client), turn) for client in range(60) for turn in range(25)]
    pauses = np.array([one.outcome(*cell).pause_s for cell in cells])
    there = np.array([one.next_start(client, float(part)) == part for client, part in cells])
    assert pauses.mean() == pytest.approx(0.5, abs=0.03)
    assert abs(np.corrcoef(pauses, there)[0, 1]) < 0.1


def test_on_off_clients_are_on_for_their_share_whatever_the_order_of_questions() -> None:
    table = {"availability": "on_off", "on_s": 30.0, "off_s": 10.0}
    forward, backward = devices(**table), devices(**table)
    times = [float(t) for t in range(0, 20_000, 7)]
    answers = [forward.next_start("2", t) for t in times]
    assert answers == [backward.next_start("2", t) for t in reversed(times)][::-1]
    on = np.mean([a == t for a, t in zip(answers, times, strict=True)])
    assert on == pytest.approx(0.75, abs=0.08)


def test_a_trace_says_when_and_repeats() -> None:
    one = devices(availability="trace", trace="0 10 20;0 40 50;1 0 100")
    assert [one.next_start("0", t) for t in (0, 15, 25, 60, 115, 199)] == [
        10,
        15,
        40,
        110,
        115,
        210,
    ]
    assert one.next_start("1", 77) == 77
    assert one.next_start("9", 0) == float("inf")
    with pytest.raises(ValidationError, match=r"needs devices\.trace"):
        devices(availability="trace")


def test_a_preset_is_a_start_that_keys_override() -> None:
    preset = devices(preset="article")
    drawn = np.array([preset.outcome("0", turn).delay_s for turn in range(N)])
    assert drawn.mean() == pytest.approx(2.0, rel=0.06)
    assert any(preset.outcome("0", turn).lost_at for turn in range(100))
    reliable = devices(preset="article", dropout=0.0)
    assert not any(reliable.outcome("0", turn).lost_at for turn in range(100))


def test_the_byzantine_share_of_clients_flips_the_sign_of_what_it_learned_and_no_other_does() -> (
    None
):
    # Given ten clients of which three are hostile, and what a training made of a model
    def sent(client: str, seed: int = 1) -> Tensors:
        document = {
            "experiment": {"seed": seed},
            "task": {"clients": 10},
            "devices": {"byzantine": 0.3, "byzantine_scale": 2.0},
        }
        plan = Plan.of(Experiment.model_validate(document), "weights")
        base: Tensors = {"trainable/0": np.ones(2, np.float32), "non_trainable/0": np.zeros(1)}
        local: Tensors = {"trainable/0": np.full(2, 1.5, np.float32), "non_trainable/0": np.ones(1)}
        return as_sent(plan, client, local, base)

    # Then three send the opposite, twice as far, in the same dtype; batch-norm statistics stay
    by_client = {c: sent(c) for c in map(str, range(10))}
    bad = {c for c, tensors in by_client.items() if tensors["trainable/0"][0] != 1.5}
    assert len(bad) == 3
    for client in bad:
        assert by_client[client]["trainable/0"].tolist() == [0.0, 0.0]
        assert by_client[client]["trainable/0"].dtype == np.float32
    assert all(tensors["non_trainable/0"] == 1 for tensors in by_client.values())

    # And who they are is the seed's choice; a resident client is never one
    others = {c for c in map(str, range(10)) if sent(c, seed=2)["trainable/0"][0] != 1.5}
    assert len(others) == 3
    assert others != bad
    assert sent("hospital-7")["trainable/0"][0] == 1.5
