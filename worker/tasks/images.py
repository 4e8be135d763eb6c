"""Images: MNIST, Fashion-MNIST, digits, CIFAR-10."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fluffle.worker.tasks.stored import StoredTask

if TYPE_CHECKING:
    import keras


class _Images(StoredTask):
    """Pixels from 0 to ``largest``, scaled to 0 to 1."""

    largest: ClassVar[int] = 255

    def preprocess(self, x: Any) -> Any:
        import keras

        return keras.ops.cast(x, "float32") * (1 / self.largest)


class MnistMlp(_Images):
    """One hidden layer of 128 units with dropout."""

    data = "mnist"

    def model(self) -> keras.Model:
        import keras
        from keras import layers

        return keras.Sequential(
            [
                keras.Input((28, 28)),
                layers.Flatten(),
                layers.Dense(128, activation="relu"),
                layers.Dropout(0.2),
                layers.Dense(10, activation="softmax"),
            ]
        )


class MnistCnn(_Images):
    """The CNN of McMahan et al. 2017 (arXiv 1602.05629), section 3: 1,663,370 parameters."""

    data = "mnist"

    def model(self) -> keras.Model:
        import keras
        from keras import layers

        return keras.Sequential(
            [
                keras.Input((28, 28)),
                layers.Reshape((28, 28, 1)),
                layers.Conv2D(32, 5, padding="same", activation="relu"),
                layers.MaxPooling2D(2),
                layers.Conv2D(64, 5, padding="same", activation="relu"),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(512, activation="relu"),
                layers.Dense(10, activation="softmax"),
            ]
        )


class FashionMlp(MnistMlp):
    """The network of mnist-mlp, on clothes."""

    data = "fashion-mnist"


class FashionCnn(MnistCnn):
    """The network of mnist-cnn, on clothes."""

    data = "fashion-mnist"


class MnistLr(_Images):
    """Softmax regression: a convex problem, as in FedProx's and SCAFFOLD's experiments."""

    data = "mnist"

    def model(self) -> keras.Model:
        import keras
        from keras import layers

        return keras.Sequential(
            [
                keras.Input(self.dataset().x.shape[1:]),
                layers.Flatten(),
                layers.Dense(10, activation="softmax"),
            ]
        )


class DigitsLr(MnistLr):
    """Softmax regression on 8 x 8 pixels: the smallest task there is."""

    data = "digits"
    largest = 16


class CifarCnn(_Images):
    """Two convolutions and a hidden layer: small enough for a CPU, no augmentation."""

    data = "cifar10"

    def model(self) -> keras.Model:
        import keras
        from keras import layers

        return keras.Sequential(
            [
                keras.Input((32, 32, 3)),
                layers.Conv2D(32, 3, padding="same", activation="relu"),
                layers.MaxPooling2D(2),
                layers.Conv2D(64, 3, padding="same", activation="relu"),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(128, activation="relu"),
                layers.Dense(10, activation="softmax"),
            ]
        )
