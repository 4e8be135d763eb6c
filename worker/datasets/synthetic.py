"""Synthetic(alpha, beta): Federated Optimization in Heterogeneous Networks (Li et al. 2020).

arXiv 1812.06127, section 5.1. Device k labels its own examples with its own linear model:

    y = argmax(softmax(W_k x + b_k)),  x in R^60, 10 classes
    W_k, b_k ~ N(u_k, 1),  u_k ~ N(0, alpha)           how much models differ
    x_k ~ N(v_k, Sigma),   Sigma_jj = j^-1.2           what inputs look like
    v_k ~ N(B_k, 1),       B_k ~ N(0, beta)            how much data differ

As in the authors' own generator, alpha and beta are standard deviations, a device has 50 + the
whole part of a lognormal(4, 2) of examples, and nine tenths of each device's are for training. Its
IID data set has one W, b ~ N(0, 1) and v = 0 for all devices.
"""

from __future__ import annotations

import numpy as np

from fluffle.schemas import UserError
from fluffle.worker.datasets.recipe import Dataset

DIMENSION = 60
CLASSES = 10
#: As many devices as the paper has.
DEVICES = 30

#: 2.4 GB: more would be a mistake.
_MOST = 10_000_000

#: Keeps these draws apart from everything else that is drawn from the experiment's seed.
_STREAM = 0x7379


def generate(alpha: float, beta: float, iid: bool, devices: int, seed: int) -> Dataset:
    """The devices' examples; ``owner_…`` is the device. The same seed gives the same.

    Raises: UserError if they would fill the memory.
    """
    rng = np.random.default_rng([seed, _STREAM])
    sizes = 50 + rng.lognormal(4, 2, devices).astype(int)
    if sizes.sum() > _MOST:
        raise UserError(
            f"{devices} devices of synthetic data have {sizes.sum():,} examples, more than "
            f"{_MOST:,}: lower task.clients"
        )
    u = rng.normal(0, alpha, devices)
    B = rng.normal(0, beta, devices)
    v = rng.normal(B[:, None], 1, (devices, DIMENSION))
    deviation = np.arange(1, DIMENSION + 1) ** (-1.2 / 2)
    one = rng.normal(0, 1, (DIMENSION, CLASSES)), rng.normal(0, 1, CLASSES)
    x_train, y_train, x_test, y_test = [], [], [], []
    for k, size in enumerate(sizes):
        if iid:
            (W, b), mean = one, np.zeros(DIMENSION)
        else:
            W, b, mean = rng.normal(u[k], 1, one[0].shape), rng.normal(u[k], 1, CLASSES), v[k]
        x = rng.normal(mean, deviation, (size, DIMENSION))
        # The largest of a softmax is the largest of what goes in.
        y = np.argmax(x @ W + b, axis=1).astype(np.uint8)
        train = size * 9 // 10
        x_train.append(x[:train].astype(np.float32))
        x_test.append(x[train:].astype(np.float32))
        y_train.append(y[:train])
        y_test.append(y[train:])
    return Dataset(
        np.concatenate(x_train),
        np.concatenate(y_train),
        np.concatenate(x_test),
        np.concatenate(y_test),
        np.repeat(np.arange(devices), [len(y) for y in y_train]),
        np.repeat(np.arange(devices), [len(y) for y in y_test]),
    )
