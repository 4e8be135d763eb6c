"""MOON's client. Li, He, Song: Model-Contrastive Federated Learning, arXiv 2103.16257, equations 3
and 4, Algorithm 1::

    loss = l_sup + mu l_con
    l_con = - log (exp(sim(z, z_glob) / T) / (exp(sim(z, z_glob) / T) + exp(sim(z, z_prev) / T)))

z is what the model that is trained makes of an input before its last layer with weights, z_glob
what the global model makes of it, z_prev the client's own of its last turn; sim is the cosine.
A client without a last turn takes the global model for it: l_con is then a constant, log 2.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from fluffle.schemas import Tensors, UserError, group
from fluffle.schemas.tensors import named
from fluffle.worker.training.algorithms.base import After, Algorithm, Batch, Given, Turn

if TYPE_CHECKING:
    from fluffle.worker.training.context import Context


class Moon(Algorithm):
    """Training that stays near the global model in what it sees, away from its own last one."""

    def __init__(self, mu: float, temperature: float) -> None:
        self._mu = mu
        self._temperature = temperature
        self._model: Any = None

    def before(self, turn: Turn) -> Given:
        """The two models to compare with."""
        base = group("trainable", turn.base)
        return {"global": base, "previous": group("moon", turn.state or {}) or base}

    def loss(self, model: Any, batch: Batch, context: Context) -> Any:
        """l_sup + mu l_con"""
        import tensorflow as tf

        self._model = model
        x = context.preprocess(batch.x)
        z, predicted = self._seeing(x, training=True)
        logits = [
            _cosine(z, self._seen(x, context, name)) / self._temperature
            for name in ("global", "previous")
        ]
        contrast = tf.reduce_mean(tf.math.softplus(logits[1] - logits[0]))
        return context.loss_of(batch, predicted) + self._mu * contrast

    def after(self, turn: Turn, local: Tensors) -> After:
        """The local model is the next turn's previous one."""
        return After(keep=named("moon", group("trainable", local)))

    def _seen(self, x: Any, context: Context, name: str) -> Any:
        """What another model makes of the inputs."""
        import tensorflow as tf

        values = {id(v): a for v, a in zip(context.weights, context[name], strict=True)}
        seeing = self._seeing
        (z, _), _ = seeing.stateless_call(
            [values.get(id(v), v.value) for v in seeing.trainable_variables],
            [v.value for v in seeing.non_trainable_variables],
            x,
            training=False,
        )
        return tf.stop_gradient(z)

    @cached_property
    def _seeing(self) -> Any:
        """The model with its representation. Raises: UserError where there is none to be found."""
        import keras
        import tensorflow as tf

        model = self._model
        with_weights = [layer for layer in getattr(model, "layers", []) if layer.weights]
        if len(with_weights) < 2 or not getattr(model, "inputs", None):
            raise UserError(
                "moon compares what hidden layers see: the model has to be Sequential or "
                "functional, with two layers that have weights"
            )
        with tf.init_scope():
            return keras.Model(model.inputs, [with_weights[-1].input, model.outputs[0]])


def _cosine(a: Any, b: Any) -> Any:
    """Of each example's representation, shape (examples,)."""
    import tensorflow as tf

    flat = [tf.reshape(z, (tf.shape(z)[0], -1)) for z in (a, b)]
    one, other = (tf.math.l2_normalize(z, axis=1, epsilon=1e-12) for z in flat)
    return tf.reduce_sum(one * other, axis=1)
