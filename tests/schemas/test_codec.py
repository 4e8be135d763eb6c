"""Whatever is encoded comes back as it was, without a copy."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fluffle.schemas import (
    Assignment,
    ClientFailed,
    ClientUpdate,
    DecodeError,
    Evaluation,
    Event,
    Experiment,
    GlobalModel,
    Masks,
    Message,
    Plan,
    Run,
    Tensors,
    UnmaskRequest,
    decode,
    encode,
    tensors_sha256,
)
from fluffle.schemas.codec import MAX_RANK, pack, unpack
from fluffle.schemas.messages import TYPES, order
from fluffle.schemas.tensors import DTYPES, Array

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,30}", fullmatch=True)
counts = st.integers(0, 2**53)
seconds = st.floats(0, 1e9)
examples = st.integers(0, 2**40)
finite = st.floats(allow_nan=False, allow_infinity=False)
metric_names = st.from_regex(r"\w[\w .,:;@%/()+*^~#-]{0,63}", fullmatch=True)
metrics = st.dictionaries(metric_names, st.floats(-1e30, 1e30), max_size=5)
keys = st.from_regex(r"[a-z][a-z0-9_]{0,8}(/[a-z0-9_]{1,5}){1,3}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8"), max_size=60)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Any dtype that may travel, in either byte order; 0-d, empty, strided and transposed too."""
    name = draw(st.sampled_from(sorted(DTYPES)))
    dtype = np.dtype("uint16" if name == "bfloat16" else name)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    array: Array = draw(hnp.arrays(dtype, shape))
    if name == "bfloat16":  # which Hypothesis does not know
        array = array.view(DTYPES[name])
    if draw(st.booleans()):
        array = array.T
    if draw(st.booleans()) and array.ndim:
        array = array[:: draw(st.sampled_from([-1, 2]))]
    if draw(st.booleans()) and name != "bfloat16":  # it has one byte order
        array = array.astype(dtype.newbyteorder(">"))
    return array


tensor_maps = st.dictionaries(keys, arrays(), max_size=5)
runs = st.builds(Run, run_id=names, run_started=counts, epoch=counts)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    low, high = sorted((draw(seconds), draw(seconds)))
    kind = draw(st.sampled_from(["contiguous", "iid", "shards", "dirichlet"]))
    document: dict[str, Any] = {
        "experiment": {"seed": draw(st.integers(0, 2**32 - 1))},
        "task": {"name": draw(texts), "clients": draw(st.integers(1, 10**6))},
        "partition": {
            "kind": kind,
            **({"alpha": draw(st.floats(1e-300, 1e300))} if kind == "dirichlet" else {}),
            "examples_per_client": draw(st.none() | st.integers(1, 2**31)),
        },
        "training": {
            "epochs": draw(st.integers(1, 2**31 - 1)),
            "optimizer": draw(texts),
            "learning_rate": draw(st.floats(1e-300, 1e300)),
        },
        "participation": {"pause_s": [low, high]},
        "aggregation": {"quorum": 1},
        "evaluation": {"every_updates": draw(counts), "examples": draw(st.none() | st.just(5))},
    }
    return Plan.of(Experiment.model_validate(document), draw(st.sampled_from(["delta", "weights"])))


answers: dict[str, st.SearchStrategy[Any]] = {
    "run": runs,
    "update_id": names,
    "client": names,
    "turn": counts,
    "base_version": counts,
    "worker": names,
}
messages: dict[str, st.SearchStrategy[Message]] = {
    "global-model": st.builds(
        GlobalModel,
        run=runs,
        version=counts,
        attempt=counts,
        final=st.booleans(),
        updates=counts,
        plan=plans(),
        tensors=tensor_maps,
    ),
    "assignment": st.builds(
        Assignment,
        run=runs,
        kind=st.sampled_from(["train", "initialise"]),
        assignment_id=names,
        client=names,
        turn=counts,
        version=counts,
        exact_version=st.booleans(),
        plan=st.none() | plans(),
    ),
    "client-update": st.builds(
        ClientUpdate,
        **answers,
        sends=st.sampled_from(["delta", "weights", "initial"]),
        examples=examples,
        metrics=metrics,
        train_s=seconds,
        slot_s=seconds,
        tensors=tensor_maps,
    ),
    "client-failed": st.builds(ClientFailed, **answers, reason=st.text(max_size=2000)),
    "evaluation": st.builds(
        Evaluation,
        run=runs,
        version=counts,
        worker=names,
        metrics=metrics,
        examples=examples,
        seconds=seconds,
    ),
    "event": st.builds(
        Event,
        run=runs,
        kind=st.sampled_from(["joined", "training", "left"]),
        worker=names,
        client=st.none() | names,
        slots=st.none() | st.integers(0, 100_000),
        peak_rss_mb=st.none() | finite,
    ),
    "unmask-request": st.builds(
        UnmaskRequest, run=runs, version=counts, words=st.integers(0, 2**28), tensors=tensor_maps
    ),
    "masks": st.builds(
        Masks,
        run=runs,
        version=counts,
        request=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
        refused=st.none() | texts,
        tensors=tensor_maps,
    ),
}


def little_endian(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def assert_same_tensors(got: Tensors, expected: Tensors) -> None:
    assert list(got) == list(expected)
    for key, array in got.items():
        assert array.dtype.name == expected[key].dtype.name
        assert array.shape == expected[key].shape
        assert array.tobytes() == little_endian(expected[key])


def test_every_type_of_message_is_tested() -> None:
    assert set(messages) == set(TYPES)


@pytest.mark.parametrize("kind", sorted(TYPES))
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_message_comes_back_as_it_was(kind: str, data: st.DataObject) -> None:
    message = data.draw(messages[kind])
    back = decode(encode(message))
    assert type(back) is type(message)
    assert back.model_dump(exclude={"tensors"}) == message.model_dump(exclude={"tensors"})
    assert_same_tensors(getattr(back, "tensors", {}), getattr(message, "tensors", {}))
    assert encode(back) == encode(message)


@given(tensor_maps, st.dictionaries(names, st.text(max_size=40), max_size=4))
def test_tensors_are_aligned_read_only_views_of_the_bytes(
    tensors: Tensors, fields: dict[str, str]
) -> None:
    # Given bytes with a head of any length before the tensors
    head = {f"x-{key}": value for key, value in fields.items()}
    body = pack(head, tensors)

    # When they are read
    got_head, got = unpack(body)

    # Then nothing was copied, and NumPy can work on the arrays where they lie
    assert got_head == head
    assert got is not None
    assert_same_tensors(got, tensors)
    whole = np.frombuffer(body, np.uint8)
    for array in got.values():
        assert array.flags.aligned
        assert not array.flags.writeable
        assert array.ctypes.data % 8 == 0 or not array.size
        assert np.shares_memory(array, whole) or not array.size
    assert tensors_sha256(got) == tensors_sha256(tensors)


def test_a_copy_is_made_of_no_array_that_already_has_the_right_bytes() -> None:
    # Given 64 MB of float32, when it is encoded, then memory for the bytes alone is taken
    array = np.ones(16_000_000, np.float32)
    tracemalloc.start()
    body = pack({}, {"trainable/0": array})
    peak = tracemalloc.get_traced_memory()[1]
    unpack(body)
    after = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.01 * array.nbytes
    assert after < 1.02 * array.nbytes


@pytest.mark.parametrize(
    ("key", "array"),
    [
        ("trainable/0", np.array(["text"])),
        ("trainable/0", np.array([object()])),
        ("trainable/0", np.array([1j])),
        ("trainable/0", np.array(["2020-01-01"], "datetime64[D]")),
        ("trainable/0", np.zeros(1, [("a", "f4")])),
        ("trainable/0", np.zeros((1,) * (MAX_RANK + 1))),
        ("trainable", np.zeros(1)),
        ("Trainable/0", np.zeros(1)),
        ("../etc/passwd", np.zeros(1)),
        ("trainable/0\n", np.zeros(1)),
    ],
)
def test_what_could_not_be_read_again_is_not_written(key: str, array: Array) -> None:
    with pytest.raises(ValueError):
        pack({}, {key: array})


def test_the_hash_of_tensors_tells_names_dtypes_shapes_order_and_values_apart() -> None:
    zeros = np.zeros((2, 3), np.float32)
    others: list[Tensors] = [
        {"a/0": zeros},
        {"a/1": zeros},
        {"a/0": zeros.astype(np.int32)},
        {"a/0": zeros.T},
        {"a/0": zeros + 1},
        {"a/0": zeros, "a/1": zeros + 1},
        {"a/1": zeros + 1, "a/0": zeros},
    ]
    assert len({tensors_sha256(tensors) for tensors in others}) == len(others)
    assert tensors_sha256({"a/0": zeros.astype(">f4")}) == tensors_sha256({"a/0": zeros})


@given(runs, counts, counts)
def test_headers_order_models_by_start_epoch_version_and_attempt(
    run: Run, version: int, attempt: int
) -> None:
    plan = Plan.of(Experiment(), "delta")
    model = GlobalModel(run=run, version=version, attempt=attempt, plan=plan, tensors={})
    assert order(model.headers()) == (run.run_started, run.epoch, version, attempt)


@pytest.mark.parametrize("value", ["7", 7.5, float("inf"), None, b"7", [7]])
def test_headers_that_are_not_ours_have_no_order(value: object) -> None:
    good: dict[str, object] = {"run_started": 1, "epoch": 1, "version": 1, "attempt": 1}
    with pytest.raises(TypeError):
        order({**good, "version": value})
    good.pop("epoch")
    with pytest.raises(KeyError):
        order(good)


def test_a_message_with_a_field_out_of_bounds_cannot_even_be_made() -> None:
    run = Run(run_id="r", run_started=0, epoch=0)
    for bad in ({"slots": -1}, {"slots": True}, {"client": "a b"}, {"peak_rss_mb": float("nan")}):
        with pytest.raises(ValueError):
            Event.model_validate({"run": run, "kind": "joined", "worker": "w", **bad})


def test_a_decode_error_is_one_printable_line_whatever_the_sender_wrote() -> None:
    run = {"run_id": "r", "run_started": 0, "epoch": 0}
    event = {"schema": 1, "type": "event", "run": run, "kind": "joined", "worker": "w"}
    for extra in ({"a\nb\x1b[2J": 1}, {"kind": "\x00"}, {"worker": "x\ny"}):
        with pytest.raises(DecodeError) as caught:
            decode(msgpack.packb({**event, **extra}))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) <= 200
