"""A strategy: how updates become the next version; put your own formula in its place."""

from dataclasses import dataclass

from fluffle import Strategy, add_to_buffer, mean_of, next_version, with_model


@dataclass(frozen=True)
class MyStrategy(Strategy):
    """w ← w + rate · Σ nₖ 2^(-τₖ/h) Δₖ / Σ nₖ 2^(-τₖ/h): an update h versions old counts half."""

    half_life: float = 2.0  # what [aggregation.parameters] may set
    rate: float = 1.0

    sends = "delta"  # or "weights": what clients send

    # The three have to be pure: no clock, no files, no chance. Then a run resumes, and
    # `fluffle verify --replay` makes every version again.

    def init(self, weights):
        return with_model(weights)

    def accept(self, state, update, staleness):
        weight = update.examples * 0.5 ** (staleness / self.half_life)
        return add_to_buffer(state, weight, update.tensors)

    def step(self, state):
        def formula(key, w, total):
            mean = mean_of(state, w, total)
            return w + self.rate * mean if key.startswith("trainable/") else mean

        return next_version(state, formula)
