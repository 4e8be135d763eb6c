"""Central differential privacy for clients. McMahan, Ramage, Talwar, Zhang: Learning Differentially
Private Recurrent Language Models, arXiv 1710.06963, Algorithm 1 with flat clipping::

    Delta_k <- Delta_k min(1, C / |Delta_k|_2)
    sum_t <- sum_k Delta_k + (noise of version t)

and then any strategy that adds up what it accepts, each with a weight of one at most: no update can
move its sum by more than C. The division by how many there are needs no noise, since that depends
on nobody's data. ``fluffle.aggregator.ledger.privacy`` says what it comes to.

The noise is y = S^-1 z of ``fluffle.aggregator.mechanisms``, with s the first column of S and
z_t ~ N(0, I), times z C::

    y_t = (z_t - sum_{i=1}^{b-1} s_i y_{t-i}) / s_0

of which the last b - 1 are kept as ``server/noise_<i>/<tensor>``. The sum is rounded to
2^-20 of the noise: its last bits would tell of what was added (Mironov 2012). All as a strategy is
but for z, which comes from a source that nobody can know, or only who has the run's secret.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fluffle.aggregator.mechanisms.noise import NoiseSource
from fluffle.aggregator.strategies.base import State, Strategy, model_of
from fluffle.aggregator.strategies.clipping import Adaptive, by_tensor, length_of, together
from fluffle.aggregator.strategies.fold import Sum, blocks
from fluffle.aggregator.strategies.operations import buffered, count, is_exact, is_non_trainable
from fluffle.schemas import ClientUpdate, Tensors, UserError
from fluffle.schemas.tensors import FROZEN, Array

_STEPS = "server/private/steps"
_NOISE = "server/noise"
_NORM = "server/private/norm"
_SUM = "buffer/sum/"
#: ``buffer/bits``: sum_i (b_i - 1/2).
_BITS = "bits"
#: What a noisy sum is rounded to, in units of its noise.
GRID = 2.0**-20


@dataclass(frozen=True, slots=True)
class Private:
    """A strategy whose sums are clipped and blurred."""

    inner: Strategy
    #: C
    clip_norm: float
    #: z
    noise_multiplier: float
    #: Where z_t comes from.
    noise: NoiseSource
    #: The first column of S, of length 1.
    column: tuple[float, ...] = (1.0,)
    #: Whether each tensor is clipped by itself.
    by_tensor: bool = False
    #: How C changes from version to version; None: not at all.
    adaptive: Adaptive | None = None
    #: What a mean divides by, where how many took part is a secret; None: how many did.
    expected: float | None = None

    @property
    def sends(self) -> Literal["delta", "weights"]:
        """As the strategy."""
        return self.inner.sends

    def init(self, weights: Tensors) -> State:
        """As the strategy. Raises: UserError for a model with values that are averaged bare."""
        if any(is_non_trainable(name) and name != FROZEN for name in weights):
            raise UserError(
                "[privacy] covers trainable weights alone, and this model has others that are "
                "averaged (batch normalisation): use one without, such as with layer normalisation"
            )
        norm = {} if self.adaptive is None else {_NORM: np.array(self.clip_norm)}
        return {**self.inner.init(weights), **norm, _STEPS: np.array(0)}

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """Fold Delta min(1, C / |Delta|)."""
        deltas = {k: a for k, a in update.tensors.items() if k != FROZEN}
        norm = self._norm(state)
        if self.by_tensor:
            clipped = by_tensor(deltas, norm)
        else:
            length = length_of(deltas)
            clipped = together(deltas, norm, length)
            if self.adaptive is not None:
                count(state, _BITS, 0.5 if length <= norm else -0.5)
        update = update.model_copy(update={"tensors": {**update.tensors, **clipped}})
        return self.inner.accept(state, update, staleness)

    def step(self, state: State) -> State:
        """Blur the sums, then step as the strategy."""
        number, blurred, kept = int(state[_STEPS]), self._complete(state), State()
        std = self._std(state)
        for name, array in list(blurred.items()):
            if name.startswith(_SUM):
                tensor = name.removeprefix(_SUM)
                noise = self._noise(state, number, tensor, array.shape)
                blurred[name] = self._blurred(np.array(array, np.float64), noise, std)
                if len(self.column) > 1:
                    kept |= self._history(state, tensor, noise)
        if self.adaptive is not None:
            kept[_NORM] = self._next_norm(self.adaptive, blurred, number)
        return {**self.inner.step(blurred), **kept, _STEPS: np.array(number + 1)}

    def _norm(self, state: State) -> float:
        """C of the open buffer."""
        return self.clip_norm if self.adaptive is None else float(state[_NORM])

    def _std(self, state: State) -> float:
        """z C, with more of z where clipping reveals something, too."""
        z = self.noise_multiplier
        z = z if self.adaptive is None else self.adaptive.noise_of_sums(z)
        return z * self._norm(state)

    def _next_norm(self, adaptive: Adaptive, state: State, number: int) -> Array:
        bits = buffered(state, _BITS) if f"buffer/{_BITS}" in state else 0.0
        (drawn,) = self.noise(number, _BITS, 0, 1)
        updates = buffered(state, "updates")
        return np.array(adaptive.next_norm(self._norm(state), bits, updates, float(drawn)))

    def _complete(self, state: State) -> State:
        """The state; as if the expected number had come, where that is asked."""
        if self.expected is None:
            return dict(state)
        sums = {
            _SUM + key: np.zeros(model.shape)
            for key, model in model_of(state).items()
            if not is_exact(key, model)
        }
        count = np.array(self.expected)
        return {**sums, **state, "buffer/updates": count, "buffer/weight": count}

    def _noise(self, state: State, number: int, tensor: str, shape: tuple[int, ...]) -> Sum:
        """y_t, in units of z C."""
        found = np.empty(shape)
        flat = found.reshape(-1)
        for i, part in enumerate(blocks(flat.size)):
            flat[part] = self.noise(number, tensor, i, part.stop - part.start)
            for lag, c in enumerate(self.column[1:], 1):
                before = state.get(f"{_NOISE}_{lag}/{tensor}")
                if before is not None:
                    flat[part] -= c * np.asarray(before, np.float64).reshape(-1)[part]
            flat[part] /= self.column[0]
        return found

    def _history(self, state: State, tensor: str, newest: Sum) -> State:
        """The last noises, as the next step wants them: under 1 the newest."""
        kept: State = {f"{_NOISE}_1/{tensor}": newest}
        for lag in range(1, len(self.column) - 1):
            before = state.get(f"{_NOISE}_{lag}/{tensor}")
            if before is not None:
                kept[f"{_NOISE}_{lag + 1}/{tensor}"] = before
        return kept

    def _blurred(self, total: Sum, noise: Sum, std: float) -> Sum:
        """The sum and its noise, of which no bit is left below the grid."""
        unit = 2.0 ** math.floor(math.log2(GRID * std))
        total += std * noise
        return np.rint(total / unit, out=total) * unit
