"""One layer with as many weights as ResNet-18 on 32 x 32 images has: 11.2 million, 44.7 MB.

(He et al. 2016, arXiv 1512.03385; for ten classes it has 11,173,962.) What is measured is how such
a model travels, so there is next to nothing to compute and few examples.
"""

from __future__ import annotations

import numpy as np

from fluffle import Examples, Task

WIDTH = 3_342
EXAMPLES = 40


class Wide(Task):
    """Rows of noise; each has to find its number."""

    def model(self):  # type: ignore[no-untyped-def]
        import keras

        layers = [keras.Input((WIDTH,)), keras.layers.Dense(WIDTH, activation="softmax")]
        return keras.Sequential(layers)

    def dataset(self) -> Examples:
        x = np.random.default_rng(0).normal(size=(EXAMPLES, WIDTH)).astype(np.float32)
        return Examples(x, np.arange(EXAMPLES, dtype=np.int32))

    def test(self) -> Examples:
        return self.dataset()
