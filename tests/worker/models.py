"""Small models of every kind that docs/models.md says of what it can: as tasks of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from fluffle import Examples, Task

EXAMPLES = 32
BATCH = 8


@dataclass(frozen=True)
class Kind:
    """What makes a task of a model."""

    model: Callable[[], keras.Model]
    x: Any = None
    y: Any = None
    attributes: dict[str, Any] | None = None
    #: An export can be loaded without the code that made it.
    loads: bool = True


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


X = _rng().normal(size=(EXAMPLES, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("uint8")
STEPS = _rng().normal(size=(EXAMPLES, 5, 3)).astype("float32")
WORDS = _rng().integers(1, 20, size=(EXAMPLES, 6)).astype("int32")
IMAGES = _rng().integers(0, 255, size=(EXAMPLES, 8, 8, 3)).astype("uint8")
LINES = np.array(["good day", "bad night", "good night", "bad day"] * (EXAMPLES // 4))
SMALL = _rng().integers(0, 255, size=(EXAMPLES, 32, 32, 3)).astype("float32")


def _sequential(*inner: Any, shape: tuple[int | None, ...] = (4,), **inputs: Any) -> keras.Model:
    last = layers.Dense(2, activation="softmax", dtype="float32")
    return keras.Sequential([keras.Input(shape, **inputs), *inner, last])


def _functional() -> keras.Model:
    i = keras.Input((4,))
    dense = layers.Dense(4, activation="tanh")  # shared
    o = layers.add([dense(i), dense(dense(i))])
    return keras.Model(i, layers.Dense(2, activation="softmax")(o))


class Subclassed(keras.Model):
    """Layers of its own, and a call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = layers.Dense(4), layers.Dense(2, activation="softmax")
        self.build((None, 4))

    def build(self, shape: Any) -> None:
        """Make the weights."""
        self.inner.build(shape)
        self.last.build((None, 4))
        self.built = True

    def call(self, x: Any) -> Any:
        """The outputs."""
        return self.last(self.inner(x))


def _two_inputs(as_dict: bool) -> keras.Model:
    a, b = keras.Input((3,), name="a"), keras.Input((1,), name="b")
    o = layers.Dense(2, activation="softmax")(layers.concatenate([a, b]))
    return keras.Model({"a": a, "b": b} if as_dict else [a, b], o)


def _two_outputs() -> keras.Model:
    i = keras.Input((4,))
    label = layers.Dense(2, activation="softmax", name="label")(i)
    size = layers.Dense(1, name="size")(i)
    return keras.Model(i, {"label": label, "size": size})


def _normalised() -> keras.Model:
    layer = layers.Normalization()
    layer.adapt(X * 3 + 5)
    return _sequential(layer)


def _text() -> keras.Model:
    layer = layers.TextVectorization(output_mode="int", output_sequence_length=3)
    layer.adapt(LINES)
    inner = layer, layers.Embedding(8, 4), layers.Flatten()
    return _sequential(*inner, shape=(), dtype="string")


def _looked_up() -> keras.Model:
    layer = layers.StringLookup(vocabulary=sorted(set(LINES.tolist())), output_mode="one_hot")
    return _sequential(layer, shape=(1,), dtype="string")


def _attention() -> keras.Model:
    i = keras.Input((5, 3))
    o = layers.MultiHeadAttention(2, 4)(i, i)
    o = layers.LayerNormalization()(layers.add([i, o]))
    o = layers.GlobalAveragePooling1D()(o)
    return keras.Model(i, layers.Dense(2, activation="softmax")(o))


def _transformer() -> keras.Model:
    words = keras.Input((6,), dtype="int32")
    o = layers.add([layers.Embedding(20, 8)(words), layers.Embedding(6, 8)(np.arange(6)[None])])
    for _ in range(2):
        normal = layers.LayerNormalization()(o)
        o = layers.add([o, layers.MultiHeadAttention(2, 4, dropout=0.1)(normal, normal)])
        inner = layers.Dense(16, activation="gelu")(layers.LayerNormalization()(o))
        o = layers.add([o, layers.Dense(8)(inner)])
    o = layers.GlobalAveragePooling1D()(o)
    return keras.Model(words, layers.Dense(2, activation="softmax")(o))


def _lora() -> keras.Model:
    dense = layers.Dense(8)
    model = _sequential(dense)
    dense.enable_lora(2)
    return model


def _frozen() -> keras.Model:
    dense = layers.Dense(8)
    dense.trainable = False
    return _sequential(dense)


class Temperature(layers.Layer):
    """A scalar weight."""

    def build(self, shape: Any) -> None:
        """Make it."""
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x: Any) -> Any:
        """The outputs."""
        return x * self.scale


#: More than float32 or float64 can hold.
IDS = np.array([2**53 + 1, 2**62 + 12345, -(2**60) - 7], np.int64)


class Odd(layers.Layer):
    """Weights that have no gradient: large integers, truth values, nothing; one is "trainable"."""

    def build(self, shape: Any) -> None:
        """Make them."""
        as_they_are = {"trainable": False, "autocast": False}
        self.ids = self.add_weight(
            shape=(3,),
            dtype="int64",
            initializer=lambda shape, dtype=None: keras.ops.convert_to_tensor(IDS),
            **as_they_are,
        )
        self.mask = self.add_weight(shape=(4,), dtype="bool", initializer="ones", **as_they_are)
        self.none = self.add_weight(shape=(0, 3))
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros")

    def call(self, x: Any) -> Any:
        """The outputs."""
        nothing = keras.ops.sum(self.none)
        return x * keras.ops.cast(self.mask, x.dtype) + nothing


def _many() -> keras.Model:
    i = keras.Input((4,))
    o = layers.add([layers.Dense(4, name=f"d{n}")(i) for n in range(100)])
    return keras.Model(i, layers.Dense(2, activation="softmax")(o))


def _policy(name: str) -> Callable[[], keras.Model]:
    def model() -> keras.Model:
        i = keras.Input((4,))
        o = layers.Dense(4, activation="relu", dtype=name)(i)
        return keras.Model(i, layers.Dense(2, activation="softmax", dtype="float32")(o))

    return model


def _application(name: str, **options: Any) -> Callable[[], keras.Model]:
    def model() -> keras.Model:
        made: keras.Model = getattr(keras.applications, name)(
            weights=None, input_shape=(32, 32, 3), classes=2, **options
        )
        return made

    return model


SPARSE = {"loss": "sparse_categorical_crossentropy"}
MODELS: dict[str, Kind] = {
    "Sequential": Kind(lambda: _sequential(layers.Dense(4))),
    "functional, shared layers": Kind(_functional),
    "subclassed": Kind(Subclassed, loads=False),
    "dict of inputs": Kind(lambda: _two_inputs(True), {"a": X[:, :3], "b": X[:, 3:]}),
    "list of inputs": Kind(lambda: _two_inputs(False), [X[:, :3], X[:, 3:]]),
    "several outputs, losses and loss weights": Kind(
        _two_outputs,
        y={"label": Y, "size": X.sum(axis=1)},
        attributes={
            "loss": {"label": "sparse_categorical_crossentropy", "size": "mean_squared_error"},
            "loss_weights": {"label": 1.0, "size": 0.5},
            "metrics": {"label": ["accuracy"], "size": ["mean_absolute_error"]},
        },
    ),
    "sample and class weights": Kind(
        lambda: _sequential(layers.Dense(4)),
        attributes={
            "class_weight": {0: 1.0, 1: 3.0},
            "sample_weights": lambda self: np.linspace(0, 1, EXAMPLES),
        },
    ),
    "labels in a column": Kind(lambda: _sequential(layers.Dense(4)), y=Y[:, None]),
    "one-hot labels": Kind(
        lambda: _sequential(layers.Dense(4)),
        y=np.eye(2, dtype="float32")[Y],
        attributes={"loss": "categorical_crossentropy"},
    ),
    "Normalization, adapted": Kind(_normalised),
    "TextVectorization": Kind(_text, LINES),
    "StringLookup": Kind(_looked_up, LINES[:, None]),
    "Embedding, LSTM": Kind(
        lambda: _sequential(layers.Embedding(20, 4, mask_zero=True), layers.LSTM(4), shape=(None,)),
        WORDS,
    ),
    "GRU": Kind(lambda: _sequential(layers.GRU(4), shape=(5, 3)), STEPS),
    "LSTM, stateful": Kind(
        lambda: keras.Sequential(
            [
                keras.Input(batch_shape=(BATCH, 5, 3)),
                layers.LSTM(4, stateful=True),
                layers.Dense(2, activation="softmax"),
            ]
        ),
        STEPS,
    ),
    "MultiHeadAttention": Kind(_attention, STEPS),
    "Transformer": Kind(_transformer, WORDS),
    "Conv2D, BatchNormalization, Dropout": Kind(
        lambda: _sequential(
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Flatten(),
            shape=(8, 8, 3),
        ),
        IMAGES,
    ),
    "SpectralNormalization": Kind(
        lambda: _sequential(layers.SpectralNormalization(layers.Dense(4)))
    ),
    "frozen layers": Kind(_frozen),
    "enable_lora": Kind(_lora),
    "mixed_float16": Kind(_policy("mixed_float16")),
    "mixed_bfloat16": Kind(_policy("mixed_bfloat16")),
    "bfloat16 weights": Kind(_policy("bfloat16")),
    "float16 weights": Kind(_policy("float16")),
    "float64 weights and inputs": Kind(_policy("float64"), X.astype("float64")),
    "scalar weight": Kind(lambda: _sequential(Temperature()), loads=False),
    "int, bool and empty weights": Kind(lambda: _sequential(Odd()), loads=False),
    "many small tensors": Kind(_many),
}
APPLICATIONS = {
    "MobileNetV3Small": Kind(_application("MobileNetV3Small"), SMALL),
    "EfficientNetB0": Kind(_application("EfficientNetB0"), SMALL),
    "ResNet50V2": Kind(_application("ResNet50V2"), SMALL),
}


def task_of(kind: Kind) -> type[Task]:
    """A task that trains it."""

    class Mine(Task):
        def model(self) -> keras.Model:
            return kind.model()

        def dataset(self) -> Examples:
            return Examples(X if kind.x is None else kind.x, Y if kind.y is None else kind.y)

        test = dataset

    for name, value in (SPARSE | (kind.attributes or {})).items():
        setattr(Mine, name, value)
    return Mine
