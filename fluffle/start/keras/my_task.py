"""A task: the model and the data; put your own in their place."""

from functools import cached_property

import numpy as np

from fluffle import ClientData, Task

CLIENTS = 8


class MyTask(Task):
    """Which of three kinds something is, from 16 measurements; generated, to have something."""

    loss = "sparse_categorical_crossentropy"  # a loss of Keras, by name or object
    metrics = ("accuracy",)  # metrics of Keras, by name or object

    def model(self):
        import keras  # here and not above, so that --help and the aggregator do without TensorFlow
        from keras import layers

        return keras.Sequential(
            [
                keras.Input((16,)),
                layers.Dense(32, activation="relu"),
                layers.Dense(3, activation="softmax"),
            ]
        )

    @cached_property
    def parts(self):
        """The training examples and the test set: a fifth of what each client has."""
        # Yours are in files? read_npz, read_csv, read_parquet and read_images of fluffle give
        # ClientData too, and self.data_dir is this file's folder, or what --data says.
        rng = np.random.default_rng(0)
        kinds = rng.normal(size=(3, 16))
        clients = {}
        for name in range(CLIENTS):
            y = rng.integers(3, size=200)
            x = kinds[y] + rng.normal(0, 1, (200, 16)) + rng.normal(0, 0.3, 16)
            clients[f"client-{name}"] = x.astype("float32"), y
        return ClientData.of(clients).split(test=0.2)

    def dataset(self):
        return self.parts[0].examples

    def owners(self):  # whose each example of dataset() is
        return self.parts[0].owners

    def test(self):  # what the global model is measured on
        return self.parts[1].examples
