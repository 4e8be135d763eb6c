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
import statistics
import struct
from pathlib import Path

HERE = Path(__file__).parent
SHAPES = {
    "trainable/0": ("float32", [2, 3]),
    "trainable/1": ("float64", [4]),
    "trainable/2": ("float32", []),
    "non_trainable/0": ("float32", [3]),  # a moving mean
    "non_trainable/1": ("float64", [3]),  # a moving variance
    "non_trainable/2": ("int64", []),  # a counter: taken from one update, never averaged
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
    if table.get("staleness", "constant") == "constant":
        return 1
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


def fedavg(table, model, buffer, memory):
    """w <- sum_k n_k / n w_k (McMahan et al., Algorithm 1); where clients began at several models
    w + sum_k n_k / n s(tau_k) Delta_k, a plain step of one along the mean delta
    """
    if "staleness" in table:
        return fedopt({**table, "server_learning_rate": 1.0}, model, buffer, memory)
    n = [u["examples"] if table["weighting"] == "examples" else 1 for u in buffer]
    return {k: mean_values(table, buffer, n, k) for k in model}


def mean_values(table, buffer, weights, key):
    """What is no parameter is averaged, with the weights that the strategy gives its updates; a
    counter is that of the update with the largest weight, of equal ones the larger.
    """
    weighted = [(w, u["local"][key]) for w, u in zip(weights, buffer, strict=True)]
    return max(weighted)[1] if SHAPES[key][0] == "int64" else mean(weighted)


def server_optimizer(table, name, key, x, delta, memory):
    """One step along delta. Reddi et al., Algorithm 2, and Hsu et al.; m and v are kept in the
    tensor's dtype, from m = 0 and v = tau^2.
    """
    eta, dtype = table["server_learning_rate"], SHAPES[key][0]
    if name == "sgd":
        return [a + eta * d for a, d in zip(x, delta, strict=True)]
    if name == "momentum":
        before = memory.setdefault(key, [0.0] * len(x))
        m = [table["server_beta_1"] * a + d for a, d in zip(before, delta, strict=True)]
        memory[key] = rounded(m, dtype)
        return [a + eta * b for a, b in zip(x, m, strict=True)]
    tau, beta_1 = table["server_tau"], table["server_beta_1"]
    beta_2 = table.get("server_beta_2", 0)
    following, first, second = [], [], []
    start = [(0.0, v) for v in rounded([tau**2] * len(x), dtype)]
    for a, d, (m, v) in zip(x, delta, memory.get(key, start), strict=True):
        m = beta_1 * m + (1 - beta_1) * d
        if name == "adagrad":
            v = v + d * d
        elif name == "adam":
            v = beta_2 * v + (1 - beta_2) * d * d
        else:
            sign = (v > d * d) - (v < d * d)
            v = v - (1 - beta_2) * d * d * sign
        following.append(a + eta * m / (math.sqrt(v) + tau))
        first.append(m)
        second.append(v)
    memory[key] = list(zip(rounded(first, dtype), rounded(second, dtype), strict=True))
    return following


def sum_of_deltas(table, buffer, weights, key):
    """sum_i w_i Delta_i, entry by entry."""
    entries = range(len(buffer[0]["sent"][key]))
    pairs = list(zip(weights, buffer, strict=True))
    return [math.fsum(w * u["sent"][key][j] for w, u in pairs) for j in entries]


def fedbuff(table, model, buffer, memory):
    """w <- w - eta_g Delta / K, Delta = sum_i s(tau_i) (base_i - local_i) (Nguyen et al.)"""
    weights = [s(table, u["staleness"]) for u in buffer]
    name = table.get("server_optimizer", "sgd")
    following = {}
    for key, x in model.items():
        if key.startswith("non_trainable/"):
            following[key] = mean_values(table, buffer, weights, key)
        else:
            delta = [d / len(buffer) for d in sum_of_deltas(table, buffer, weights, key)]
            following[key] = server_optimizer(table, name, key, x, delta, memory)
    return following


def fedopt(table, model, buffer, memory):
    """x <- ServerOpt(x, sum_k n_k s(tau_k) Delta_k / sum_k n_k) (Reddi et al., Algorithms 1, 2)"""
    n = [u["examples"] if table["weighting"] == "examples" else 1 for u in buffer]
    weights = [a * s(table, u["staleness"]) for a, u in zip(n, buffer, strict=True)]
    following = {}
    for key, x in model.items():
        if key.startswith("non_trainable/"):
            following[key] = mean_values(table, buffer, weights, key)
        else:
            delta = [d / sum(n) for d in sum_of_deltas(table, buffer, weights, key)]
            name = OPTIMIZERS.get(table["strategy"], "sgd")
            following[key] = server_optimizer(table, name, key, x, delta, memory)
    return following


def ringmaster(table, model, buffer, memory):
    """x <- x + eta Delta if it is less than R versions old (Maranjyan et al., Algorithm 4)"""
    (update,) = buffer
    assert update["staleness"] < table["delay_threshold"]
    return fedbuff({**table, "staleness": "constant"}, model, buffer, memory)


def rennala(table, model, buffer, memory):
    """x <- x + eta (1/S) sum Delta_i, all of the newest model (Tyurin & Richtarik, Method 4)"""
    assert not any(update["staleness"] for update in buffer)
    return fedbuff({**table, "staleness": "constant"}, model, buffer, memory)


def kept(table, update, key):
    """What a rule that needs the single updates keeps of one: scaled deltas, in their dtype."""
    if key.startswith("non_trainable/"):
        return update["local"][key]
    weight = s(table, update["staleness"])
    return rounded([weight * d for d in update["sent"][key]], SHAPES[key][0])


def rule_on(table, model, buffer, memory, rule):
    """x <- ServerOpt(x, rule); what is no parameter becomes rule."""
    name = table.get("server_optimizer", "sgd")
    following = {}
    for key, x in model.items():
        aggregated = rule(key, [kept(table, u, key) for u in buffer])
        if not key.startswith("non_trainable/"):
            aggregated = server_optimizer(table, name, key, x, aggregated, memory)
        following[key] = aggregated
    return following


def median(table, model, buffer, memory):
    """Coordinate by coordinate (Yin et al., Definition 1)"""

    def rule(key, rows):
        of = statistics.median_low if SHAPES[key][0] == "int64" else statistics.median
        return [of(column) for column in zip(*rows, strict=True)]

    return rule_on(table, model, buffer, memory, rule)


def trimmed_mean(table, model, buffer, memory):
    """Without the b n smallest and largest of each coordinate (Yin et al., Definition 2)"""
    cut = math.floor(table["trim"] * len(buffer))

    def rule(key, rows):
        middles = [sorted(column)[cut : len(rows) - cut] for column in zip(*rows, strict=True)]
        if SHAPES[key][0] == "int64":
            return list(map(statistics.median_low, middles))
        return [math.fsum(middle) / len(middle) for middle in middles]

    return rule_on(table, model, buffer, memory, rule)


def krum(table, model, buffer, memory):
    """The mean of the m of the smallest sums of squared distances to n - f - 2 others (Blanchard
    et al., section 4); Krum is m = 1.
    """
    n, f = len(buffer), table["byzantine_updates"]
    flat = [
        [v for key in model if key.startswith("trainable/") for v in kept(table, u, key)]
        for u in buffer
    ]
    scores = []
    for i in range(n):
        others = sorted(math.dist(flat[i], flat[j]) ** 2 for j in range(n) if j != i)
        scores.append(math.fsum(others[: n - f - 2]))
    m = 1 if table["strategy"] == "krum" else table.get("krum_selected", n - f)
    chosen = sorted(range(n), key=lambda i: scores[i])[:m]

    def rule(key, rows):
        best = [rows[i] for i in chosen]
        return best[0] if SHAPES[key][0] == "int64" else mean([(1, row) for row in best])

    return rule_on(table, model, buffer, memory, rule)


def norm_bounding(table, model, buffer, memory):
    """(1/n) sum_i s(tau_i) Delta_i / max(1, |Delta_i| / M) (Sun et al., section 4)"""
    weights = [s(table, u["staleness"]) for u in buffer]
    cut = []
    for weight, u in zip(weights, buffer, strict=True):
        deltas = [v for key in model if key.startswith("trainable/") for v in u["sent"][key]]
        cut.append(weight / max(1, math.hypot(*deltas) / table["norm_bound"]))
    following = {}
    for key, x in model.items():
        if key.startswith("non_trainable/"):
            following[key] = mean_values(table, buffer, weights, key)
        else:
            delta = [d / len(buffer) for d in sum_of_deltas(table, buffer, cut, key)]
            following[key] = server_optimizer(table, "sgd", key, x, delta, memory)
    return following


def scaffold(table, model, buffer, memory):
    """x <- x + eta_g / |S| sum_i Delta y_i;  c <- c + 1 / N sum_i Delta c_i (Karimireddy et al.,
    Algorithm 1). c goes out with the model.
    """
    ones = [1] * len(buffer)
    following = {}
    for key, x in model.items():
        if key.startswith("non_trainable/"):
            following[key] = mean_values(table, buffer, ones, key)
            continue
        rate = table["server_learning_rate"] / len(buffer)
        total = sum_of_deltas(table, buffer, ones, key)
        following[key] = [a + rate * d for a, d in zip(x, total, strict=True)]
    for key in WANTS["scaffold"]:
        c = memory.get(key, [0.0] * len(buffer[0]["sent"][key]))
        total = sum_of_deltas(table, buffer, ones, key)
        memory[key] = [a + d / CLIENTS for a, d in zip(c, total, strict=True)]
    return {**following, **memory}


def fednova(table, model, buffer, memory):
    """x <- x + tau_eff sum_i p_i Delta_i / |a_i|,  tau_eff = sum_i p_i |a_i| (Wang et al.)"""
    n = [u["examples"] for u in buffer]
    p = [n_i / sum(n) for n_i in n]
    a = [u["sent"]["fednova/norm"][0] for u in buffer]
    tau_eff = math.fsum(p_i * a_i for p_i, a_i in zip(p, a, strict=True))
    weights = [tau_eff * p_i / a_i for p_i, a_i in zip(p, a, strict=True)]
    following = {}
    for key, x in model.items():
        if key.startswith("non_trainable/"):
            following[key] = mean_values(table, buffer, n, key)
        else:
            total = sum_of_deltas(table, buffer, weights, key)
            following[key] = [v + d for v, d in zip(x, total, strict=True)]
    return following


def ca2fl(table, model, buffer, memory):
    """v <- h + (1/K) sum_i s(tau_i) (Delta_i - h_i);  x <- x + eta v;  then h_i <- Delta_i, and h
    is the mean of all N of them (Wang et al., Algorithm 2)
    """
    weights = [s(table, u["staleness"]) for u in buffer]
    before = {client: dict(cached) for client, cached in memory.items()}
    following = {}
    for key, x in model.items():
        if key.startswith("non_trainable/"):
            following[key] = mean_values(table, buffer, weights, key)
            continue
        zeros = [0.0] * len(x)
        for u in buffer:
            memory.setdefault(u["client"], {})[key] = u["sent"][key]
        v = []
        for j in range(len(x)):
            mean_of_cached = math.fsum(cached[key][j] for cached in before.values()) / CLIENTS
            corrections = [
                w * (u["sent"][key][j] - before.get(u["client"], {}).get(key, zeros)[j])
                for w, u in zip(weights, buffer, strict=True)
            ]
            v.append(mean_of_cached + math.fsum(corrections) / len(buffer))
        following[key] = server_optimizer(table, "sgd", key, x, v, memory)
    return following


def fedasync(table, model, buffer, memory):
    """x <- (1 - alpha_t) x + alpha_t x_new (Xie et al., Algorithm 1)"""
    (update,) = buffer
    alpha = table["mixing"] * s(table, update["staleness"])
    new = update["local"]
    return {
        k: new[k]
        if SHAPES[k][0] == "int64"
        else [(1 - alpha) * x + alpha * y for x, y in zip(model[k], new[k], strict=True)]
        for k in model
    }


def fedexp(table, model, buffer, memory):
    """x <- x + eta_g mean,  eta_g = max(1, sum_i |Delta_i|^2 / (2 M (|mean|^2 + epsilon)))
    (Jhunjhunwala et al., Algorithm 1)
    """
    trainable = [key for key in model if key.startswith("trainable/")]
    m, ones = len(buffer), [1] * len(buffer)
    means = {k: [d / m for d in sum_of_deltas(table, buffer, ones, k)] for k in trainable}
    squares = math.fsum(d * d for u in buffer for key in trainable for d in u["sent"][key])
    of_mean = math.fsum(d * d for key in trainable for d in means[key])
    eta_g = max(1, squares / (2 * m * (of_mean + table["epsilon"])))
    following = {}
    for key, x in model.items():
        if key.startswith("non_trainable/"):
            following[key] = mean_values(table, buffer, ones, key)
        else:
            following[key] = [a + eta_g * d for a, d in zip(x, means[key], strict=True)]
    return following


def fadas(table, model, buffer, memory):
    """x <- x + eta_t m / (sqrt(max v) + epsilon), with the mean of the buffer in m and v; eta_t
    is eta, or min(eta, 1 / tau_max) where tau_max > tau_c (Wang et al., Algorithm 2). What is kept
    is kept in the tensor's dtype.
    """
    beta_1, beta_2 = table["server_beta_1"], table["server_beta_2"]
    eta, stalest = table["server_learning_rate"], max(u["staleness"] for u in buffer)
    if "delay_threshold" in table and stalest > table["delay_threshold"]:
        eta = min(eta, 1 / stalest)
    following = {}
    for key, x in model.items():
        if key.startswith("non_trainable/"):
            following[key] = mean_values(table, buffer, [1] * len(buffer), key)
            continue
        total = sum_of_deltas(table, buffer, [1] * len(buffer), key)
        slots, following[key] = [], []
        kept = memory.get(key, [(0.0, 0.0, 0.0)] * len(x))
        for a, d, (m, v, largest) in zip(x, total, kept, strict=True):
            d = d / len(buffer)
            m, v = beta_1 * m + (1 - beta_1) * d, beta_2 * v + (1 - beta_2) * d * d
            largest = max(largest, v)
            following[key].append(a + eta * m / (math.sqrt(largest) + table["epsilon"]))
            slots.append((m, v, largest))
        dtype = SHAPES[key][0]
        memory[key] = list(
            zip(*(rounded(each, dtype) for each in zip(*slots, strict=True)), strict=True)
        )
    return following


def feddyn(table, model, buffer, memory):
    """h <- h - alpha / N sum_i Delta_i;  theta <- theta + mean - h / alpha (Acar et al.)"""
    alpha, ones, following = table["alpha"], [1] * len(buffer), {}
    for key, x in model.items():
        if key.startswith("non_trainable/"):
            following[key] = mean_values(table, buffer, ones, key)
            continue
        total = sum_of_deltas(table, buffer, ones, key)
        before = memory.get(key, [0.0] * len(x))
        h = [b - alpha / CLIENTS * d for b, d in zip(before, total, strict=True)]
        memory[key] = h
        following[key] = [
            a + d / len(buffer) - b / alpha for a, d, b in zip(x, total, h, strict=True)
        ]
    return {**following, "feddyn/alpha": [alpha]}


#: FedAvg with a server optimizer, by the names of the papers.
OPTIMIZERS = {
    "fedavgm": "momentum",
    "fedadagrad": "adagrad",
    "fedadam": "adam",
    "fedyogi": "yogi",
}
RULES = {
    "fedavg": fedavg,
    "fedbuff": fedbuff,
    "fedasync": fedasync,
    "ringmaster": ringmaster,
    "rennala": rennala,
    "ca2fl": ca2fl,
    "median": median,
    "trimmed-mean": trimmed_mean,
    "krum": krum,
    "multi-krum": krum,
    "norm-bounding": norm_bounding,
    "scaffold": scaffold,
    "fednova": fednova,
    "fedexp": fedexp,
    "fadas": fadas,
    "feddyn": feddyn,
    **dict.fromkeys(OPTIMIZERS, fedopt),
}
#: How many clients there are in all.
CLIENTS = 10
#: What updates bring besides.
WANTS = {
    "scaffold": {
        key.replace("trainable", "control"): shape
        for key, shape in SHAPES.items()
        if key.startswith("trainable/")
    },
    "fednova": {"fednova/norm": ("float64", [])},
}
#: What goes out with the model, where it is not what updates bring.
GOES_OUT = {"feddyn": {"feddyn/alpha": ("float64", [])}}
#: Their updates carry the clients' weights; those of all others carry deltas.
SEND_WEIGHTS = ("fedavg", "fedasync")


def story(name, table, arrivals, bad=(), mode=None):
    """``arrivals``: per step, the staleness of the updates that come before it.

    Updates too stale for the strategy are in the events, and change nothing. ``bad`` are the places
    in each buffer whose clients flip the sign of their delta, and make it ten times as large.
    """
    rng = random.Random(name)
    versions = [new_model(rng)]
    events = []
    memory = {}
    wants = WANTS.get(table["strategy"], {})
    shapes = wants | GOES_OUT.get(table["strategy"], {})
    for stalenesses in arrivals:
        buffer = []
        for staleness in stalenesses:
            base_version = len(versions) - 1 - staleness
            base = versions[base_version]
            local = local_training(rng, base)
            sent = dict(local)
            if table["strategy"] not in SEND_WEIGHTS or mode == "concurrent":
                for key, (dtype, _) in SHAPES.items():
                    if key.startswith("trainable/"):
                        delta = [y - x for x, y in zip(base[key], local[key], strict=True)]
                        if len(buffer) in bad:
                            delta = [-10 * d for d in delta]
                        sent[key] = rounded(delta, dtype)
            for key, (dtype, shape) in wants.items():
                if key == "fednova/norm":
                    sent[key] = [rng.choice([1.0, 7.0, 40.0, rng.uniform(1, 400)])]
                else:
                    noise = [rng.gauss(0, 0.5) for _ in range(math.prod(shape))]
                    sent[key] = rounded(noise, dtype)
            update = {"base_version": base_version, "examples": rng.randrange(1, 9000)}
            if table["strategy"] == "ca2fl":  # with 5 clients of 10, one twice in a buffer at times
                update["client"] = str(rng.randrange(5))
            events.append({"update": {**update, "tensors": sent}})
            if table["strategy"] == "ringmaster" and staleness >= table["delay_threshold"]:
                continue
            if table["strategy"] == "rennala" and staleness > 0:
                continue
            buffer.append({**update, "staleness": staleness, "local": local, "sent": sent})
        exact = RULES[table["strategy"]](table, versions[-1], buffer, memory)
        versions.append({key: rounded(exact[key], SHAPES[key][0]) for key in SHAPES})
        besides = {k: rounded(exact[k], shapes[k][0]) for k in exact if k not in SHAPES}
        events.append({"step": {**versions[-1], **besides}})
    head = {"mode": mode} if mode else {}
    head |= {"aggregation": table, "shapes": {**SHAPES, **shapes}, "initial": versions[0]}
    lines = [f'"{key}": {json.dumps(value)},' for key, value in head.items()]
    told = ",\n".join(map(json.dumps, events))  # a line for each event
    story = "\n".join(["{", *lines, f'"events": [\n{told}\n]', "}\n"])
    (HERE / f"{name}.json").write_text(story)


#: Fresh, stale and very stale updates, full buffers and one that a deadline closed early.
BUFFERS = [[0, 0, 0], [1, 0, 1], [2, 0, 1], [0], [4, 3, 0], [5, 1, 2], [0, 6]]
SINGLES = [[0], [0], [2], [1], [4], [0], [6], [7], [3]]
#: Rounds: everybody trained the newest version.
SYNCHRONOUS = [[0] * n for n in (3, 3, 2, 4, 1, 3, 3, 3)]
#: For rules that look at all updates at once.
LARGE = [
    *([0] * 7, [1, 0, 1, 0, 0, 1, 0], [0, 2, 1, 0, 2, 0, 0, 1], [0], [0, 0], [1, 0, 3, 0, 0, 2, 1]),
    *([0] * 9, [2, 1, 0, 0, 5, 0, 0], [0, 1, 0, 3, 0, 0, 6], [1, 1, 0, 1, 0, 2, 0, 1, 0, 0]),
]
#: Of S = 3: whatever is older than the newest version is ignored.
IGNORED = [
    *([0, 0, 0], [1, 0, 0, 0], [0, 2, 0, 1, 0], [3, 0, 0, 0], [0, 0, 0], [0, 5, 0, 0]),
    *([6, 2, 0, 0, 0], [0, 0, 1, 0]),
]
#: Of R = 3: what is 3 or more versions old is ignored.
THRESHOLD = [[0], [1], [2], [3, 0], [1], [5, 4, 2], [0], [3, 2]]


def main():
    for weighting in ("examples", "uniform"):
        table = {"strategy": "fedavg", "weighting": weighting}
        story(f"fedavg-{weighting}", table, BUFFERS, mode="cohort")
        stale = {"staleness": "polynomial", "staleness_a": 0.5, "staleness_b": 4}
        story(f"fedavg-stale-{weighting}", {**table, **stale}, BUFFERS, mode="concurrent")
    for staleness, a, b in (("constant", 0.5, 4), ("polynomial", 0.5, 4), ("hinge", 10.0, 2)):
        shared = {"staleness": staleness, "staleness_a": a, "staleness_b": b}
        fedbuff_table = {"strategy": "fedbuff", "server_learning_rate": 0.7, **shared}
        story(f"fedbuff-{staleness}", fedbuff_table, BUFFERS)
        fedasync_table = {"strategy": "fedasync", "mixing": 0.6, **shared}
        story(f"fedasync-{staleness}", fedasync_table, SINGLES)
    adaptive = {"server_beta_1": 0.9, "server_beta_2": 0.99, "server_tau": 0.001}
    optimizers = {
        "momentum": {"server_learning_rate": 0.8, "server_beta_1": 0.6},
        "adagrad": {"server_learning_rate": 0.1, "server_beta_1": 0.0, "server_tau": 0.01},
        "adam": {"server_learning_rate": 0.02, **adaptive},
        "yogi": {"server_learning_rate": 0.02, **adaptive},
    }
    fresh = {"staleness": "constant"}
    half = {"staleness": "polynomial", "staleness_a": 0.5, "staleness_b": 4}
    for name, optimizer in OPTIMIZERS.items():
        table = {"strategy": name, "weighting": "examples", **fresh, **optimizers[optimizer]}
        story(name, table, SYNCHRONOUS)
    table = {"strategy": "fedadam", "weighting": "uniform", **half, **optimizers["adam"]}
    story("fedadam-stale", table, BUFFERS)
    for name, parameters in optimizers.items():
        table = {"strategy": "fedbuff", "server_optimizer": name, **half, **parameters}
        story(f"fedbuff-{name}", table, BUFFERS)
    table = {"strategy": "ringmaster", "delay_threshold": 3, "server_learning_rate": 0.5}
    story("ringmaster", table, THRESHOLD)
    story("rennala", {"strategy": "rennala", "server_learning_rate": 0.5}, IGNORED)
    for name, parameters in {"ca2fl": fresh, "ca2fl-stale": half}.items():
        table = {"strategy": "ca2fl", "server_learning_rate": 0.6, **parameters}
        story(name, table, BUFFERS)
    for name, parameters in {
        "median": fresh,
        "median-adam": {"server_optimizer": "adam", **half, **optimizers["adam"]},
        "trimmed-mean": {"trim": 0.2, **fresh},
        "trimmed-mean-stale": {"trim": 0.3, **half},
        "norm-bounding": {"norm_bound": 1.0, **half},
    }.items():
        strategy = name.removesuffix("-adam").removesuffix("-stale")
        table = {"strategy": strategy, "server_learning_rate": 0.9, **parameters}
        story(name, table, LARGE, bad=(1, 4))
    for name, parameters in {
        "krum": fresh,
        "krum-stale": half,
        "multi-krum": fresh,
        "multi-krum-three": {"krum_selected": 3, **half},
    }.items():
        strategy = name.removesuffix("-stale").removesuffix("-three")
        shared = {"quorum": 7, "byzantine_updates": 2, "server_learning_rate": 0.9}
        table = {"strategy": strategy, **shared, **parameters}
        story(name, table, [arrivals for arrivals in LARGE if len(arrivals) >= 7], bad=(1, 4))
    story("scaffold", {"strategy": "scaffold", "server_learning_rate": 0.8}, SYNCHRONOUS)
    story("fednova", {"strategy": "fednova"}, SYNCHRONOUS)
    story("fedexp", {"strategy": "fedexp", "epsilon": 0.01}, SYNCHRONOUS)
    story("feddyn", {"strategy": "feddyn", "alpha": 0.2}, SYNCHRONOUS)
    moments = {"server_learning_rate": 0.4, "server_beta_1": 0.8, "server_beta_2": 0.95}
    table = {"strategy": "fadas", **moments, "epsilon": 1e-3}
    story("fadas", table, BUFFERS)
    story("fadas-delay", {**table, "delay_threshold": 2}, BUFFERS)


if __name__ == "__main__":
    main()
