"""ResNet-18 for images of 32 x 32, as a task of one's own (He et al. 2015, arXiv 1512.03385).

The stem is that of section 4.2 (3 x 3, no pooling), the stages those of table 1: 11,173,962
trainable parameters, 9,600 statistics of batch normalisation; 44.7 MB.
"""

import numpy as np

from fluffle import Examples, Task


class ResNet18(Task):
    def model(self):
        import keras
        from keras import layers

        def convolved(x, filters, stride=1, size=3):
            x = layers.Conv2D(filters, size, stride, padding="same", use_bias=False)(x)
            return layers.BatchNormalization()(x)

        def block(x, filters, stride):
            y = layers.ReLU()(convolved(x, filters, stride))
            y = convolved(y, filters)
            if stride > 1:
                x = convolved(x, filters, stride, size=1)
            return layers.ReLU()(layers.Add()([x, y]))

        inputs = keras.Input((32, 32, 3))
        x = layers.ReLU()(convolved(inputs, 64))
        for filters in (64, 128, 256, 512):
            x = block(x, filters, stride=1 if filters == 64 else 2)
            x = block(x, filters, stride=1)
        outputs = layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x))
        return keras.Model(inputs, outputs)

    def preprocess(self, x):
        import tensorflow as tf

        return tf.cast(x, tf.float32) / 255

    def dataset(self):
        rng = np.random.default_rng(0)
        return Examples(
            rng.integers(256, size=(8, 32, 32, 3), dtype=np.uint8),
            np.arange(8, dtype=np.uint8) % 10,
        )

    test = dataset
