"""Data that has owners: what roles of Shakespeare say, what smartwatches feel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fluffle.worker.datasets import recipe
from fluffle.worker.tasks.stored import StoredTask

if TYPE_CHECKING:
    import keras


class ShakespeareGru(StoredTask):
    """The next character after each of 80: one GRU of 128 units, 63,404 parameters.

    Smaller than the two LSTMs of 256 of McMahan et al. 2017 (arXiv 1602.05629), section 3.
    """

    data = "shakespeare"

    def model(self) -> keras.Model:
        import keras
        from keras import layers

        characters = len(recipe(self.data).classes)
        return keras.Sequential(
            [
                keras.Input((80,), dtype="int32"),
                layers.Embedding(characters, 8),
                layers.GRU(128, return_sequences=True),
                layers.Dense(characters, activation="softmax"),
            ]
        )

    def preprocess(self, x: Any) -> Any:
        import keras

        return keras.ops.cast(x, "int32")


class WearablesCnn(StoredTask):
    """Which exercise two seconds of six axes are: two convolutions over time."""

    data = "wearables"

    def model(self) -> keras.Model:
        import keras
        from keras import layers

        return keras.Sequential(
            [
                keras.Input((100, 6)),
                layers.Conv1D(16, 8, strides=2, activation="relu"),
                layers.Conv1D(32, 8, strides=2, activation="relu"),
                layers.GlobalAveragePooling1D(),
                layers.Dense(7, activation="softmax"),
            ]
        )
