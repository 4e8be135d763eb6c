"""CA2FL's cache of every client's last delta: its arithmetic, its bound, and its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluffle.aggregator.coordinator.effects import Fold, MakeVersion
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.strategies.base import State, Strategy, model_of
from fluffle.aggregator.strategies.ca2fl import Ca2fl
from fluffle.aggregator.strategies.fedbuff import FedBuff
from fluffle.aggregator.strategies.optimizers import Sgd
from fluffle.aggregator.strategies.staleness import constant
from fluffle.aggregator.verify.files import cache_is_there
from fluffle.schemas import ClientUpdate, Experiment, Run, Tensors, UserError

CLIENTS = 6
STRATEGY = Ca2fl(Sgd(0.5), CLIENTS, 10**6)
MODEL: Tensors = {
    "trainable/0": np.zeros((2, 3), np.float32),
    "trainable/1": np.ones(2, np.float32),
    "non_trainable/0": np.ones(2, np.float32),
}


def update_of(client: str, seed: int) -> ClientUpdate:
    rng = np.random.default_rng(seed)
    return ClientUpdate(
        run=Run(run_id="r", run_started=0, epoch=1),
        update_id=f"{client}:{seed}",
        client=client,
        turn=seed,
        base_version=0,
        worker="w",
        sends="delta",
        examples=1,
        tensors={k: rng.normal(size=a.shape).astype(a.dtype) for k, a in MODEL.items()},
    )


def version_of(strategy: Strategy, state: State, clients: list[str], seed: int) -> State:
    for i, client in enumerate(clients):
        state = strategy.accept(state, update_of(client, 100 * seed + i), 0)
    return strategy.step(state)


def test_with_everybody_in_every_buffer_it_is_fedbuff() -> None:
    # h + mean(Delta - h) is the mean of Delta, whatever is cached.
    everybody = [str(i) for i in range(CLIENTS)]
    plain = FedBuff(Sgd(0.5), constant)
    one, other = STRATEGY.init(MODEL), plain.init(MODEL)
    for seed in range(4):
        one = version_of(STRATEGY, one, everybody, seed)
        other = version_of(plain, other, everybody, seed)
        for key, array in model_of(one).items():
            np.testing.assert_allclose(array, model_of(other)[key], rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("012345"), min_size=1, max_size=4), max_size=8))
def test_h_stays_the_mean_of_what_all_clients_sent_last(buffers: list[list[str]]) -> None:
    state, last = STRATEGY.init(MODEL), dict[str, Tensors]()
    for seed, clients in enumerate(buffers):
        last |= {c: update_of(c, 100 * seed + i).tensors for i, c in enumerate(clients)}
        state = version_of(STRATEGY, state, clients, seed)
    for key in ("trainable/0", "trainable/1"):
        total = sum((sent[key].astype(float) for sent in last.values()), np.zeros(MODEL[key].shape))
        np.testing.assert_allclose(state[f"server/h/{key}"], total / CLIENTS, atol=1e-12)


def test_it_refuses_to_start_where_the_cache_could_outgrow_its_bound() -> None:
    bytes_of_all = CLIENTS * 8 * 4
    Ca2fl(Sgd(1.0), CLIENTS, bytes_of_all).init(MODEL)
    with pytest.raises(UserError, match=r"192 bytes, over .* = 0\.000191: raise it") as e:
        Ca2fl(Sgd(1.0), CLIENTS, bytes_of_all - 1).init(MODEL)
    assert "\n" not in str(e.value)


def test_what_is_cached_holds_no_message_and_cannot_be_written_into() -> None:
    body = np.zeros(1000, np.float32)
    update = update_of("hospital-7", 1)
    update.tensors["trainable/1"] = body[:2]
    state = STRATEGY.step(STRATEGY.accept(STRATEGY.init(MODEL), update, 0))
    cached = [array for key, array in state.items() if key.startswith("cache/")]
    assert len(cached) == 2
    assert all(array.base is None and not array.flags.writeable for array in cached)


def record(ledger: Ledger, version: int, state: State, clients: list[str]) -> None:
    folds = [Fold(f"{version}:{c}:{i}", c, 1, 0, 0, 1, "w") for i, c in enumerate(clients)]
    ledger.make_version(MakeVersion(version, state, "quorum", folds, 0), {}, 0.0, keep=2)


def files(folder: Path) -> set[str]:
    return {path.name.split("-")[0] for path in (folder / "weights").glob("cache_*")}


def opened(folder: Path) -> Ledger:
    ledger = Ledger(folder, durable=False)
    ledger.open_run(Experiment(), "run", 1)
    ledger.lead()
    return ledger


def test_a_version_writes_only_the_entries_that_changed_and_a_resumed_run_none_again(
    tmp_path: Path,
) -> None:
    # Given three versions, whose buffers held different clients
    ledger = opened(tmp_path)
    state = STRATEGY.init(MODEL)
    written: list[set[str]] = []
    for version, clients in enumerate((["0", "1"], ["1", "2"], ["3"]), 1):
        state = version_of(STRATEGY, state, clients, version)
        before = {path.name for path in (tmp_path / "weights").glob("cache_*")}
        record(ledger, version, state, clients)
        after = {path.name for path in (tmp_path / "weights").glob("cache_*")}
        written.append({name.split("-")[0] for name in after - before})

    # Then each wrote those of its buffer, and one file of each client is there
    assert written == [{"cache_0", "cache_1"}, {"cache_1", "cache_2"}, {"cache_3"}]
    assert files(tmp_path) == {f"cache_{i}" for i in range(4)}
    assert len(list((tmp_path / "weights").glob("cache_*"))) == 4
    model = next((tmp_path / "weights").glob("model-v000003*"))
    assert model.stat().st_size < 1500  # no cache in it
    ledger.close()

    # When the run is resumed, then its state is the same bytes
    ledger = opened(tmp_path)
    resumed = ledger.load().state
    assert resumed is not None
    assert resumed.keys() == state.keys()
    assert all(resumed[key].tobytes() == array.tobytes() for key, array in state.items())

    # And it goes on to the same bytes, writing what changes and nothing else
    straight, again = (version_of(STRATEGY, s, ["0", "5"], 9) for s in (state, resumed))
    assert all(straight[key].tobytes() == again[key].tobytes() for key in straight)
    before = {path.name for path in (tmp_path / "weights").glob("cache_*")}
    record(ledger, 4, again, ["0", "5"])
    after = {path.name for path in (tmp_path / "weights").glob("cache_*")}
    assert {name.split("-")[0] for name in after - before} == {"cache_0", "cache_5"}
    ledger.close()


def test_verify_finds_a_missing_entry(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    record(ledger, 1, version_of(STRATEGY, STRATEGY.init(MODEL), ["0", "1"], 1), ["0", "1"])
    assert list(cache_is_there(ledger, Experiment())) == []
    next((tmp_path / "weights").glob("cache_1-*")).unlink()
    (line,) = cache_is_there(ledger, Experiment())
    assert line.startswith("what is kept for a client is missing or damaged: cache_1-")
    ledger.close()
