"""What a site of the wearables example trains (sites.toml): a whole task of one's own."""

from functools import cached_property

import numpy as np

from fluffle import Examples, Task


class WearablesSite(Task):
    """Which exercise two seconds of six axes are, from ``wearables.npz`` in the site's folder."""

    def model(self):
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

    @cached_property
    def arrays(self):
        return np.load(self.data_dir / "wearables.npz")

    def dataset(self):  # what this site trains on
        return Examples(self.arrays["x_train"], self.arrays["y_train"])

    def test(self):  # what it measures the global model and its own on
        return Examples(self.arrays["x_test"], self.arrays["y_test"])
