"""Masks and seals: golden vectors by an independent script, and sums that are exact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.schemas import DecodeError, Experiment, UserError
from fluffle.schemas.masking import (
    SEAL,
    SEAL_BYTES,
    WORDS,
    Member,
    Sealed,
    add_mask,
    add_words,
    fixed,
    info,
    mask,
    mask_sum,
    masked_spec,
    public_key,
    real,
    seal,
    set_digest,
    unseal,
)
from fluffle.schemas.secure import CAPACITY, SecureTable, scale_of
from fluffle.schemas.tensors import spec

GOLDEN = json.loads((Path(__file__).parent / "golden_masks" / "vectors.json").read_text())
PRIVATE = bytes.fromhex(GOLDEN["private"])
SEALED = Sealed("run-1", 5, 3, 16)


def test_a_key_a_mask_and_fixed_point_numbers_are_those_of_the_papers() -> None:
    # Given vectors that RFC 8439 and plain arithmetic give, by a script without fluffle
    tensors = {"trainable/0": np.array(GOLDEN["values"], np.float32)}

    # When the same is made here
    stream = np.zeros(40, np.uint32)
    add_mask(stream, bytes.fromhex(GOLDEN["seed"]), 1)
    words = fixed(tensors, GOLDEN["scale"], 1.0)
    masked = words.copy()
    add_mask(masked, bytes.fromhex(GOLDEN["seed"]), 1)
    weighted = np.zeros(words.size, np.uint32)
    add_words(weighted, words, GOLDEN["weight"])

    # Then it is the same, number for number
    assert public_key(PRIVATE) == GOLDEN["public"]
    assert stream.tolist() == GOLDEN["mask"]
    assert words.tolist() == GOLDEN["fixed"]
    assert masked.tolist() == GOLDEN["masked"]
    assert weighted.tolist() == GOLDEN["weighted"]


def test_a_seal_of_rfc_9180_opens_and_is_bound_to_what_it_was_made_for() -> None:
    # Given a seal that the script has made, for one update of one run
    golden, seed = bytes.fromhex(GOLDEN["seal"]), bytes.fromhex(GOLDEN["seed"])

    # When it is opened for that update, then it opens
    assert len(golden) == SEAL_BYTES
    assert info(SEALED, "run-1:4:2", "2").decode() == GOLDEN["info"]
    assert unseal(golden, PRIVATE, info(SEALED, "run-1:4:2", "2")) == seed

    # And for anything else it does not: another update, client, run, length or promise, or key
    for sealed, update_id, client in (
        (SEALED, "run-1:5:2", "2"),
        (SEALED, "run-1:4:2", "3"),
        (SEALED._replace(run_id="run-2"), "run-1:4:2", "2"),
        (SEALED._replace(words=6), "run-1:4:2", "2"),
        (SEALED._replace(min_clients=2), "run-1:4:2", "2"),
        (SEALED._replace(max_weight=17), "run-1:4:2", "2"),
    ):
        with pytest.raises(DecodeError, match="does not open"):
            unseal(golden, PRIVATE, info(sealed, update_id, client))
    with pytest.raises(DecodeError, match="does not open"):
        unseal(golden, bytes([8] * 32), info(SEALED, "run-1:4:2", "2"))


@given(st.binary(max_size=2 * SEAL_BYTES))
def test_hostile_seals_are_refused(hostile: bytes) -> None:
    with pytest.raises(DecodeError):
        unseal(hostile, PRIVATE, b"")


def test_a_seed_of_another_length_is_refused() -> None:
    with pytest.raises(DecodeError, match="31 bytes"):
        unseal(seal(bytes(31), public_key(PRIVATE), b"x"), PRIVATE, b"x")


@given(st.data())
def test_the_unmasked_sum_is_the_sum_of_the_fixed_point_numbers(data: st.DataObject) -> None:
    # Given a buffer as full as it can be, of values up to the largest that have room
    quorum = data.draw(st.integers(2, 8))
    table = SecureTable(
        min_clients=2,
        max_weight=data.draw(st.integers(1, 1000)),
        max_value=data.draw(st.floats(0.01, 100)),
    )
    scale, most = scale_of(table, quorum), table.max_value
    values = st.lists(st.floats(-most, most), min_size=5, max_size=5)
    updates = [
        {
            "trainable/0": np.array(data.draw(values)),
            "non_trainable/0": np.array([data.draw(st.sampled_from([-most, 0.0, most]))]),
        }
        for _ in range(quorum)
    ]
    weights = [data.draw(st.integers(1, table.max_weight)) for _ in updates]

    # When each leaves under a mask, the aggregator adds them up, and the helper their masks
    sealed = Sealed("run-1", 6, 2, table.max_weight)
    total, members = np.zeros(6, np.uint32), []
    for i, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        sent = mask(update, public_key(PRIVATE), sealed, f"run-1:{i}:{i}", str(i), scale, most)
        assert spec(sent) == masked_spec(update)
        words, seal_ = np.asarray(sent[WORDS], np.uint32), sent[SEAL].tobytes()
        add_words(total, words, weight)
        members.append(Member(f"run-1:{i}:{i}", str(i), weight, seal_))
    found = real(total - mask_sum(members, sealed, PRIVATE), updates[0], scale)

    # Then it is the weighted sum of the rounded values, exactly
    for name in updates[0]:
        exact = sum(
            w * np.rint(u[name] * scale).astype(object)
            for u, w in zip(updates, weights, strict=True)
        )
        assert (found[name] * scale).astype(object).tolist() == exact.tolist()


@given(st.floats(1e-6, 1e6), st.integers(1, 1000), st.integers(1, 1000))
def test_no_sum_wraps_around_and_no_more_than_half_the_room_is_left(
    most: float, weight: int, quorum: int
) -> None:
    scale = scale_of(SecureTable(max_weight=weight, max_value=most), quorum)
    each = int(np.ceil(scale * most))
    assert quorum * weight * each <= CAPACITY
    assert quorum * weight * int(np.ceil(2 * scale * most)) > CAPACITY
    assert np.log2(scale).is_integer()


@pytest.mark.parametrize("value", [1.25, -1.25, np.nan, np.inf])
def test_a_value_without_room_is_refused_in_a_line(value: float) -> None:
    tensors = {"trainable/0": np.array([0.5, value])}
    with pytest.raises(UserError, match=r"trainable/0 has a value of .*max_value = 1"):
        fixed(tensors, 8.0, 1.0)


def test_masks_of_two_updates_have_nothing_in_common() -> None:
    tensors = {"trainable/0": np.zeros(1000, np.float32)}
    sealed = Sealed("run-1", 1000, 3, 16)
    sent = [mask(tensors, GOLDEN["public"], sealed, "run-1:1:0", "0", 8.0, 1.0) for _ in range(2)]
    assert np.count_nonzero(sent[0][WORDS] == sent[1][WORDS]) < 3
    assert np.count_nonzero(sent[0][WORDS] == 0) < 3


def test_a_set_is_known_by_its_members_in_any_order() -> None:
    a, b = Member("r:1:0", "0", 1, b"a"), Member("r:2:1", "1", 2, b"b")
    known = set_digest("r", 5, [a, b])
    assert set_digest("r", 5, [b, a]) == known
    others = ("q", 5, [a, b]), ("r", 6, [a, b]), ("r", 5, [a]), ("r", 5, [a._replace(weight=2), b])
    assert len({known, *(set_digest(*other) for other in others)}) == 5


SECURE = {"secure_aggregation": {}, "admission": {"norm_factor": 0}}


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"aggregation": {"strategy": "median"}}, "which need only the sum"),
        ({"aggregation": {"strategy": "krum", "quorum": 9}}, "which need only the sum"),
        ({"aggregation": {"strategy": "norm-bounding", "norm_bound": 1.0}},
         "which need only the sum"),
        ({"aggregation": {"strategy": "scaffold"}, "training": {"optimizer": "sgd"}},
         "which need only the sum"),
        ({"aggregation": {"strategy": "fedasync"}}, "which need only the sum"),
        ({"privacy": {"clip_norm": 1.0, "noise_multiplier": 1.0}}, "by \\[\\[update\\]\\]"),
        ({"update": [{"kind": "top_k", "share": 0.1}]}, "cannot be added up"),
        ({"update": [{"kind": "quantise"}]}, "cannot be added up"),
        ({"admission": {}}, "admission.norm_factor = 0"),
        ({"aggregation": {"keep_updates": True}}, "keep_updates = false"),
        ({"aggregation": {"trigger": "clients"}}, "trigger = 'updates'"),
        ({"aggregation": {"strategy": "fedavg"}}, "admission.max_examples"),
        ({"aggregation": {"quorum": 2}}, "quorum = 3"),
        ({"secure_aggregation": {"max_weight": 65536}, "task": {"clients": 1000},
          "aggregation": {"quorum": 900}}, "no room"),
        ({"secure_aggregation": {"helper_key": "xyz"}}, "helper_key"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(tables: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Experiment.model_validate(SECURE | tables)


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"aggregation": {"strategy": "fedavg", "weighting": "uniform"}},
        {
            "aggregation": {"strategy": "fedadam"},
            "admission": {"norm_factor": 0, "max_examples": 9},
        },
        {"update": [{"kind": "clip", "norm": 1.0}, {"kind": "noise", "std": 0.1}]},
    ],
)
def test_what_is_linear_goes_with_it(tables: dict[str, object]) -> None:
    assert Experiment.model_validate(SECURE | tables).min_updates == 3
