"""The task of every site: the model, and how a site reads its own data. Each has a copy."""

from functools import cached_property

import numpy as np

from fluffle import Examples, Task


class MySite(Task):
    """Which of three kinds something is, from 16 measurements in the site's ``data.npz``."""

    def model(self):
        import keras  # here and not above: the aggregator does without TensorFlow
        from keras import layers

        return keras.Sequential(
            [
                keras.Input((16,)),
                layers.Dense(32, activation="relu"),
                layers.Dense(3, activation="softmax"),
            ]
        )

    @cached_property
    def arrays(self):
        # Yours are a table or images? read_csv, read_parquet and read_images of fluffle read them;
        # give them the classes and features, so that they are the same at all sites.
        return np.load(self.data_dir / "data.npz")

    def dataset(self):  # what this site trains on
        return Examples(self.arrays["x_train"], self.arrays["y_train"])

    def test(self):  # what it holds out; at the evaluator the federation's test set
        return Examples(self.arrays["x_test"], self.arrays["y_test"])
