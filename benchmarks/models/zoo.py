"""Models of docs/models.md at the sizes that people train, as tasks on numbers drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluffle import Examples, Task

CLASSES = 10
WORDS = 5_000
LENGTH = 64


@dataclass(frozen=True)
class Kind:
    """What a task is made of."""

    model: Callable[[], Any]
    #: Inputs: so many, drawn by a generator.
    inputs: Callable[[np.random.Generator, int], Any]
    #: Of a client; one epoch.
    examples: int = 640
    batch: int = 32


def images(size: int, channels: int) -> Callable[[np.random.Generator, int], Any]:
    """Floats in 0 to 1."""
    shape = size, size, channels
    return lambda rng, count: rng.random((count, *shape), np.float32)


def words(rng: np.random.Generator, count: int) -> Any:
    """Numbers of words."""
    return rng.integers(1, WORDS, size=(count, LENGTH)).astype(np.int32)


def table(rng: np.random.Generator, count: int) -> Any:
    """Two inputs by name."""
    wide = rng.normal(50, 20, (count, 40)).astype(np.float32)
    return {"numbers": wide, "kind": rng.integers(100, size=(count, 1)).astype(np.int32)}


def _sequential(shape: tuple[int | None, ...], *inner: Any, **inputs: Any) -> Any:
    import keras

    last = keras.layers.Dense(CLASSES, activation="softmax", dtype="float32")
    return keras.Sequential([keras.Input(shape, **inputs), *inner, last])


def mlp() -> Any:
    """784-128-10, as in the trainer's benchmark."""
    from keras import layers

    inner = layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dropout(0.2)
    return _sequential((28, 28, 1), *inner)


def own_step() -> Any:
    """The same with a ``train_step`` of its own."""
    import keras
    import tensorflow as tf

    class Own(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                predicted = self(x, training=True)
                loss = self.compute_loss(x, y, predicted)
            weights = self.trainable_weights
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return self.compute_metrics(x, y, predicted) | {"loss": loss}

    return Own(mlp().layers)


def mixed() -> Any:
    """The convolutions in float16."""
    return _convolutions("mixed_float16")


def cnn() -> Any:
    """Convolutions, batch normalisation, dropout."""
    return _convolutions("float32")


def _convolutions(policy: str) -> Any:
    from keras import layers

    inner: list[Any] = []
    for filters in (16, 32):
        inner += [
            layers.Conv2D(filters, 3, padding="same", use_bias=False, dtype=policy),
            layers.BatchNormalization(dtype=policy),
            layers.ReLU(dtype=policy),
            layers.MaxPooling2D(dtype=policy),
        ]
    inner += [layers.Flatten(), layers.Dense(64, activation="relu", dtype=policy)]
    return _sequential((28, 28, 1), *inner, layers.Dropout(0.3))


def text() -> Any:
    """Embeddings, their mean."""
    from keras import layers

    inner = layers.Embedding(WORDS, 64), layers.GlobalAveragePooling1D()
    return _sequential((LENGTH,), *inner, dtype="int32")


def lstm() -> Any:
    """Embeddings and an LSTM."""
    from keras import layers

    inner = layers.Embedding(WORDS, 32), layers.LSTM(64)
    return _sequential((LENGTH,), *inner, dtype="int32")


def transformer() -> Any:
    """Two blocks of four heads, 64 wide."""
    import keras
    from keras import layers

    inputs = keras.Input((LENGTH,), dtype="int32")
    places = layers.Embedding(LENGTH, 64)(np.arange(LENGTH)[None])
    o = layers.add([layers.Embedding(WORDS, 64)(inputs), places])
    for _ in range(2):
        normal = layers.LayerNormalization()(o)
        o = layers.add([o, layers.MultiHeadAttention(4, 16, dropout=0.1)(normal, normal)])
        hidden = layers.Dense(256, activation="gelu")(layers.LayerNormalization()(o))
        o = layers.add([o, layers.Dense(64)(hidden)])
    o = layers.GlobalAveragePooling1D()(o)
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(o))


def two_inputs() -> Any:
    """Adapted numbers and an embedded kind."""
    import keras
    from keras import layers

    numbers = keras.Input((40,), name="numbers")
    kind = keras.Input((1,), dtype="int32", name="kind")
    scaled = layers.Normalization(mean=50.0, variance=400.0)(numbers)
    o = layers.concatenate([scaled, layers.Flatten()(layers.Embedding(100, 8)(kind))])
    o = layers.Dense(64, activation="relu")(o)
    last = layers.Dense(CLASSES, activation="softmax")(o)
    return keras.Model({"numbers": numbers, "kind": kind}, last)


def application(name: str) -> Callable[[], Any]:
    """Of ``keras.applications``, its weights drawn anew."""

    def model() -> Any:
        import keras

        make = getattr(keras.applications, name)
        return make(weights=None, input_shape=(32, 32, 3), classes=CLASSES)

    return model


SMALL = {"inputs": images(32, 3), "examples": 96, "batch": 16}
KINDS: dict[str, Kind] = {
    "Sequential, 784-128-10": Kind(mlp, images(28, 1)),
    "own train_step, 784-128-10": Kind(own_step, images(28, 1)),
    "dict of inputs, Normalization": Kind(two_inputs, table),
    "Embedding, mean": Kind(text, words),
    "Embedding, LSTM": Kind(lstm, words, 160),
    "Transformer": Kind(transformer, words, 160),
    "Conv2D, BatchNormalization": Kind(cnn, images(28, 1), 320),
    "the same in mixed_float16": Kind(mixed, images(28, 1), 160),
    "MobileNetV3Small": Kind(application("MobileNetV3Small"), **SMALL),
    "EfficientNetB0": Kind(application("EfficientNetB0"), **SMALL),
    "ResNet50V2": Kind(application("ResNet50V2"), **SMALL),
}


def task_of(kind: Kind, clients: int) -> type[Task]:
    """A task of this many clients, who have the same number of examples."""

    class Drawn(Task):
        """Labels are drawn too: nothing is to be learned."""

        def model(self) -> Any:
            return kind.model()

        def dataset(self) -> Examples:
            return self._drawn(clients * kind.examples)

        def test(self) -> Examples:
            return self._drawn(2 * kind.batch)

        def _drawn(self, count: int) -> Examples:
            rng = np.random.default_rng(0)
            x = kind.inputs(rng, count)
            return Examples(x, rng.integers(CLASSES, size=count).astype(np.int32))

    return Drawn
