"""Writes the golden vectors of whole client turns, from the papers' equations alone.

Plain Python floats and nothing of Fluffle: run ``python tests/worker/golden/make.py`` and the
files beside it are written again. Each file is one client's turns: the global model of each, the
model and what else is sent after it, and what the client keeps. The client has six examples and
takes all of them in each step, so that no order matters. The model is
x -> tanh(x a + b) -> softmax(h c + d).
"""

from __future__ import annotations

import json
import math
import random
import struct
from pathlib import Path

HERE = Path(__file__).parent
INPUTS, HIDDEN, CLASSES, EXAMPLES = 3, 4, 3, 6
SHAPES = {"a": [INPUTS, HIDDEN], "b": [HIDDEN], "c": [HIDDEN, CLASSES], "d": [CLASSES]}
SIZES = {name: math.prod(shape) for name, shape in SHAPES.items()}
#: Where the head, c and d, begins in a point, which is all weights one after the other.
HEAD = SIZES["a"] + SIZES["b"]
SIZE = sum(SIZES.values())
RATE, EPOCHS, TURNS = 0.25, 4, 3


def single(values):
    """What float32 keeps of these numbers."""
    return [struct.unpack("<f", struct.pack("<f", v))[0] for v in values]


RNG = random.Random(42)
X = [single(RNG.uniform(-1, 1) for _ in range(INPUTS)) for _ in range(EXAMPLES)]
Y = [0, 0, 1, 1, 1, 2]


def hidden(point, x):
    a, b = point[: SIZES["a"]], point[SIZES["a"] : HEAD]
    return [
        math.tanh(b[j] + sum(x[i] * a[i * HIDDEN + j] for i in range(INPUTS)))
        for j in range(HIDDEN)
    ]


def dot(u, v):
    return sum(p * q for p, q in zip(u, v, strict=True))


def unit(u):
    return [p / math.sqrt(dot(u, u)) for p in u]


def gradient(point, contrast=None):
    """Of the mean cross-entropy; with contrast = (w_glob, w_prev, mu, T) of MOON's whole loss."""
    c, d = point[HEAD : HEAD + SIZES["c"]], point[HEAD + SIZES["c"] :]
    total = [0.0] * SIZE
    for x, y in zip(X, Y, strict=True):
        h = hidden(point, x)
        logits = [
            d[k] + sum(h[j] * c[j * CLASSES + k] for j in range(HIDDEN)) for k in range(CLASSES)
        ]
        exps = [math.exp(v) for v in logits]
        error = [(e / sum(exps) - (k == y)) / EXAMPLES for k, e in enumerate(exps)]
        back = [sum(error[k] * c[j * CLASSES + k] for k in range(CLASSES)) for j in range(HIDDEN)]
        if contrast is not None:
            w_glob, w_prev, mu, temperature = contrast
            to_glob, to_prev = unit(hidden(w_glob, x)), unit(hidden(w_prev, x))
            z, length = unit(h), math.sqrt(dot(h, h))
            near, away = dot(z, to_glob), dot(z, to_prev)
            # l_con = log(1 + exp((away - near) / T)): equation 3 divided through
            slope = 1 / (1 + math.exp((near - away) / temperature)) / temperature
            for j in range(HIDDEN):
                of_near = (to_glob[j] - near * z[j]) / length
                of_away = (to_prev[j] - away * z[j]) / length
                back[j] += mu * slope * (of_away - of_near) / EXAMPLES
        inner = [back[j] * (1 - h[j] ** 2) for j in range(HIDDEN)]
        step = [x[i] * inner[j] for i in range(INPUTS) for j in range(HIDDEN)]
        step += inner
        step += [h[j] * error[k] for j in range(HIDDEN) for k in range(CLASSES)]
        step += error
        total = [t + s for t, s in zip(total, step, strict=True)]
    return total


def sgd(start, direction, steps=EPOCHS):
    """w <- w - eta direction(w), so many times."""
    w = list(start)
    for _ in range(steps):
        w = [v - RATE * g for v, g in zip(w, direction(w), strict=True)]
    return w


def combined(*terms):
    """The sum of (factor, point)."""
    return [sum(f * p[i] for f, p in terms) for i in range(SIZE)]


# ---- the algorithms: (base, what the client kept) -> (local model, what is sent besides, kept)


def fedprox(base, kept, broadcast, mu=0.6):
    """1812.06127, equation 2: the gradient of F_k(w) + mu / 2 |w - w_base|^2."""
    return sgd(base, lambda w: combined((1, gradient(w)), (mu, w), (-mu, base))), {}, {}


def scaffold(option):
    """1910.06378, Algorithm 1, with option I or II."""

    def turn(base, kept, broadcast):
        c, own = broadcast["control"], kept.get("control", [0.0] * SIZE)
        y = sgd(base, lambda w: combined((1, gradient(w)), (-1, own), (1, c)))
        if option == "I":
            following = gradient(base)
        else:
            scale = 1 / (EPOCHS * RATE)
            following = combined((1, own), (-1, c), (scale, base), (-scale, y))
        return y, {"control": combined((1, following), (-1, own))}, {"control": following}

    return turn


def fednova_momentum(base, kept, broadcast, rho=0.7):
    """2007.07481, section 4: ||a||_1 = (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho)."""
    w, velocity = list(base), [0.0] * SIZE
    for _ in range(EPOCHS):
        velocity = [rho * v - RATE * g for v, g in zip(velocity, gradient(w), strict=True)]
        w = [p + v for p, v in zip(w, velocity, strict=True)]
    norm = (EPOCHS - rho * (1 - rho**EPOCHS) / (1 - rho)) / (1 - rho)
    return w, {"norm": [norm]}, {}


def fednova_proximal(base, kept, broadcast, mu=0.8):
    """2007.07481, section 4: ||a||_1 = (1 - (1 - alpha)^tau) / alpha with alpha = eta mu."""
    w, _, _ = fedprox(base, kept, broadcast, mu)
    alpha = RATE * mu
    return w, {"norm": [(1 - (1 - alpha) ** EPOCHS) / alpha]}, {}


def feddyn(base, kept, broadcast):
    """2111.04263, Algorithm 1: argmin L_k - <g_k, w> + alpha / 2 |w - w_base|^2."""
    (alpha,), g = broadcast["alpha"], kept.get("feddyn", [0.0] * SIZE)
    w = sgd(base, lambda w: combined((1, gradient(w)), (-1, g), (alpha, w), (-alpha, base)))
    return w, {}, {"feddyn": combined((1, g), (-alpha, w), (alpha, base))}


def moon(base, kept, broadcast, mu=2.0, temperature=0.5):
    """2103.16257, equations 3 and 4."""
    previous = kept.get("moon", base)
    w = sgd(base, lambda w: gradient(w, (base, previous, mu, temperature)))
    return w, {}, {"moon": w}


def ditto(base, kept, broadcast, pull=0.9):
    """2012.04221, Algorithm 1: FedAvg's update, and v <- v - eta (grad F_k(v) + lambda (v - w))."""
    own = kept.get("ditto", base)
    v = sgd(own, lambda v: combined((1, gradient(v)), (pull, v), (-pull, base)))
    return sgd(base, gradient), {}, {"ditto": v}


def fedrep(base, kept, broadcast, head_epochs=3):
    """2102.07078, Algorithm 1: tau steps of the head, then the body's."""
    head = kept.get("head", base[HEAD:])
    start = base[:HEAD] + head

    def of(part):
        return lambda w: [g if part(i) else 0.0 for i, g in enumerate(gradient(w))]

    fitted = sgd(start, of(lambda i: i >= HEAD), head_epochs)
    w = sgd(fitted, of(lambda i: i < HEAD), EPOCHS - head_epochs)
    return w, {}, {"head": w[HEAD:]}


STORIES = {
    "fedprox": (fedprox, {"training": {"proximal_mu": 0.6}}),
    "scaffold-I": (scaffold("I"), {"asks": "control-variate-I"}),
    "scaffold-II": (scaffold("II"), {"asks": "control-variate-II"}),
    "fednova-momentum": (fednova_momentum, {"asks": "normaliser", "training": {"momentum": 0.7}}),
    "fednova-proximal": (
        fednova_proximal,
        {"asks": "normaliser", "training": {"proximal_mu": 0.8}},
    ),
    "feddyn": (feddyn, {"asks": "feddyn"}),
    "moon": (
        moon,
        {
            "training": {
                "algorithm": "moon",
                "algorithm_parameters": {"mu": 2.0, "temperature": 0.5},
            }
        },
    ),
    "ditto": (
        ditto,
        {"training": {"algorithm": "ditto", "algorithm_parameters": {"pull": 0.9}}},
    ),
    "fedrep": (
        fedrep,
        {
            "training": {"algorithm": "fedrep", "algorithm_parameters": {"head_epochs": 3}},
            "weights": {"keep": ["head/*"]},
        },
    ),
}


def shown(values):
    """Ten digits: more than float32 has, fewer than machines differ in."""
    return [float(f"{v:.10g}") for v in values]


def story(name):
    turn, plan = STORIES[name]
    rng = random.Random(name)
    base = single(rng.uniform(-1, 1) for _ in range(SIZE))
    kept, turns = {}, []
    for _ in range(TURNS):
        broadcast = {}
        if name.startswith("scaffold"):
            broadcast = {"control": single(rng.gauss(0, 0.1) for _ in range(SIZE))}
        if name == "feddyn":
            broadcast = {"alpha": [0.4]}
        local, sent, kept = turn(base, kept, broadcast)
        turns.append(
            {
                "base": base,
                "broadcast": broadcast,
                "local": shown(local),
                "sent": {key: shown(values) for key, values in sent.items()},
                "kept": {key: shown(values) for key, values in kept.items()},
            }
        )
        # The next global model is another than what this client made of it.
        base = single(v + rng.gauss(0, 0.1) for v in local)
        if name == "fedrep":  # of which the head never was a part
            base = base[:HEAD] + turns[0]["base"][HEAD:]
    training = {"learning_rate": RATE, "epochs": EPOCHS, **plan.get("training", {})}
    return {
        **{"x": X, "y": Y, "shapes": SHAPES},
        **plan,
        **{"training": training, "turns": turns},
    }


for _name in STORIES:
    (HERE / f"{_name}.json").write_text(json.dumps(story(_name), indent=1) + "\n")
