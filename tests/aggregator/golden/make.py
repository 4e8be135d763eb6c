"""Writes the golden vectors of the strategies, from the papers' equations alone.

Plain Python floats and nothing of Fluffle: run ``python tests/aggregator/golden/make.py`` and the
files beside it are written again, byte for byte. Each file is a story: an initial model, clients
that take the version of the time, train (here: add noise), and send what they have in the order
written, and steps with the model expected after each.
"""

from __future__ import annotations

import json
import math
import random
import struct
from pathlib import Path

HERE = Path(__file__).parent
SHAPES = {
    "trainable/0": ("float32", [2, 3]),
    "trainable/1": ("float64", [4]),
    "trainable/2": ("float32", []),
    "non_trainable/0": ("float32", [3]),  # a moving mean
    "non_trainable/1": ("float64", [3]),  # a moving variance
    "non_trainable/2": ("int64", []),  # a counter
}


def rounded(values, dtype):
    """What a tensor of this dtype keeps of these numbers."""
    if dtype == "float32":
        return [struct.unpack("<f", struct.pack("<f", v))[0] for v in values]
    if dtype == "int64":
        return [round(v) for v in values]  # half to even, as IEEE has it
    return list(values)


def new_model(rng):
    model = {}
    for key, (dtype, shape) in SHAPES.items():
        low, high = {"non_trainable/1": (0.01, 2), "non_trainable/2": (0, 50)}.get(key, (-1, 1))
        model[key] = rounded([rng.uniform(low, high) for _ in range(math.prod(shape))], dtype)
    return model


def local_training(rng, base):
    """Some other weights not far away; variances stay positive."""
    local = {}
    for key, (dtype, _) in SHAPES.items():
        if key == "non_trainable/1":
            moved = [v * rng.uniform(0.5, 1.5) for v in base[key]]
        elif key == "non_trainable/2":
            moved = [v + rng.randrange(1, 40) for v in base[key]]
        else:
            moved = [v + rng.gauss(0, 0.3) for v in base[key]]
        local[key] = rounded(moved, dtype)
    return local


def s(table, tau):
    """Xie et al., section 5.2."""
    a, b = table["staleness_a"], table["staleness_b"]
    if table["staleness"] == "polynomial":
        return math.pow(tau + 1, -a)
    if table["staleness"] == "hinge":
        return 1 if tau <= b else 1 / (a * (tau - b) + 1)
    return 1


def mean(weighted):
    """sum_i w_i v_i / sum_i w_i of pairs (w_i, v_i), entry by entry."""
    total = math.fsum(w for w, _ in weighted)
    entries = range(len(weighted[0][1]))
    return [math.fsum(w * v[j] for w, v in weighted) / total for j in entries]


def fedavg(table, model, buffer):
    """w <- sum_k n_k / n w_k (McMahan et al., Algorithm 1)"""
    n = [u["examples"] if table["weighting"] == "examples" else 1 for u in buffer]
    return {k: mean([(w, u["local"][k]) for w, u in zip(n, buffer, strict=True)]) for k in model}


def fedbuff(table, model, buffer):
    """w <- w - eta_g Delta / K, Delta = sum_i s(tau_i) (base_i - local_i) (Nguyen et al.)"""
    weights = [s(table, u["staleness"]) for u in buffer]
    following = {}
    for key, w in model.items():
        if key.startswith("non_trainable/"):
            following[key] = mean(
                [(x, u["local"][key]) for x, u in zip(weights, buffer, strict=True)]
            )
            continue
        eta, k = table["server_learning_rate"], len(buffer)
        pull = [
            math.fsum(-x * u["sent"][key][j] for x, u in zip(weights, buffer, strict=True)) / k
            for j in range(len(w))
        ]
        following[key] = [w[j] - eta * pull[j] for j in range(len(w))]
    return following


def fedasync(table, model, buffer):
    """x <- (1 - alpha_t) x + alpha_t x_new (Xie et al., Algorithm 1)"""
    (update,) = buffer
    alpha = table["mixing"] * s(table, update["staleness"])
    new = update["local"]
    return {
        k: [(1 - alpha) * x + alpha * y for x, y in zip(model[k], new[k], strict=True)]
        for k in model
    }


RULES = {"fedavg": fedavg, "fedbuff": fedbuff, "fedasync": fedasync}


def story(name, table, arrivals):
    """``arrivals``: per step, the staleness of the updates that come before it."""
    rng = random.Random(name)
    versions = [new_model(rng)]
    events = []
    for stalenesses in arrivals:
        buffer = []
        for staleness in stalenesses:
            base_version = len(versions) - 1 - staleness
            base = versions[base_version]
            local = local_training(rng, base)
            sent = dict(local)
            if table["strategy"] == "fedbuff":
                for key, (dtype, _) in SHAPES.items():
                    if key.startswith("trainable/"):
                        delta = [y - x for x, y in zip(base[key], local[key], strict=True)]
                        sent[key] = rounded(delta, dtype)
            update = {"base_version": base_version, "examples": rng.randrange(1, 9000)}
            events.append({"update": {**update, "tensors": sent}})
            buffer.append({**update, "staleness": staleness, "local": local, "sent": sent})
        exact = RULES[table["strategy"]](table, versions[-1], buffer)
        versions.append({key: rounded(exact[key], SHAPES[key][0]) for key in SHAPES})
        events.append({"step": versions[-1]})
    written = {
        "aggregation": table,
        "shapes": SHAPES,
        "initial": versions[0],
        "events": events,
    }
    (HERE / f"{name}.json").write_text(json.dumps(written, indent=1) + "\n")


#: Fresh, stale and very stale updates, full buffers and one that a deadline closed early.
BUFFERS = [[0, 0, 0], [1, 0, 1], [2, 0, 1], [0], [4, 3, 0], [5, 1, 2], [0, 6]]
SINGLES = [[0], [0], [2], [1], [4], [0], [6], [7], [3]]


def main():
    for weighting in ("examples", "uniform"):
        table = {"strategy": "fedavg", "weighting": weighting}
        story(f"fedavg-{weighting}", table, BUFFERS)
    for staleness, a, b in (("constant", 0.5, 4), ("polynomial", 0.5, 4), ("hinge", 10.0, 2)):
        shared = {"staleness": staleness, "staleness_a": a, "staleness_b": b}
        fedbuff_table = {"strategy": "fedbuff", "server_learning_rate": 0.7, **shared}
        story(f"fedbuff-{staleness}", fedbuff_table, BUFFERS)
        fedasync_table = {"strategy": "fedasync", "mixing": 0.6, **shared}
        story(f"fedasync-{staleness}", fedasync_table, SINGLES)


if __name__ == "__main__":
    main()
