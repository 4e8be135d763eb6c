"""`[privacy]`: central differential privacy for clients, and what of the rest goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from fluffle.schemas.extensions import MECHANISM
from fluffle.schemas.table import Fraction, OnlyWith, Parameters, Positive, Table

if TYPE_CHECKING:
    from fluffle.schemas.experiment import Experiment

#: Selections that look at what came of clients' data.
BY_DATA = ("power-of-choice", "oort")
#: Mechanisms that come with Fluffle.
MECHANISMS = ("gaussian", "banded-mf")


class PrivacyTable(Table):
    """Central differential privacy for clients; see docs/privacy.md."""

    #: Deltas longer than this (L2, over all trainable weights) are shortened to it (C); with
    #: clip_quantile it is what C begins with.
    clip_norm: Positive
    #: update: a delta is shortened as a whole. tensor: each of its m tensors by itself, to
    #: clip_norm / sqrt(m).
    clip_by: Literal["update", "tensor"] = "update"
    #: C follows this quantile of the deltas' lengths (0.5: their median; arXiv 1905.03871).
    #: Default: C stays.
    clip_quantile: Fraction | None = None
    #: How fast it follows: C changes by a factor of exp(clip_rate) at most, but for noise.
    clip_rate: Annotated[Positive, OnlyWith("clip_quantile")] = 0.2
    #: The standard deviation of the noise on how many deltas are shorter than C. More of it asks
    #: for less noise on the deltas. Default: a twentieth of the quorum, noise_multiplier at least.
    clip_bit_noise: Annotated[Positive | None, OnlyWith("clip_quantile")] = None
    #: The standard deviation of the noise on the sum of a buffer, in units of ``clip_norm`` (z).
    noise_multiplier: Positive
    #: The delta for which epsilon is reported: well below one in the number of clients.
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    #: gaussian: independent noise in every version. banded-mf: noise that later versions take back
    #: (arXiv 2306.08153), with participation.selection = 'min-separation' and as many bands. One of
    #: your own: FILE.py:Class beside the experiment file, or the name that an installed package
    #: gave it.
    mechanism: str = Field("gaussian", max_length=256)
    #: What a mechanism of your own is made with: its keyword arguments.
    parameters: Parameters | None = None
    #: cohort: poisson chooses each client by itself for each version, with probability
    #: participation.sampling_rate, in secret, and epsilon counts that it may not have been chosen.
    #: Default: cohorts of one size, which anybody can compute.
    sampling: Literal["poisson"] | None = None
    #: Where noise comes from under the real clock. system: the operating system, kept nowhere.
    #: seeded: a secret in the run folder, so that ``fluffle verify --replay`` can recompute
    #: versions, and whoever has the folder can take the noise off.
    noise: Literal["system", "seeded"] = "system"

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        if self.clip_quantile is not None and self.clip_by == "tensor":
            raise ValueError(
                "privacy.clip_quantile is about whole deltas: not with clip_by = 'tensor'"
            )
        if self.clip_bit_noise is not None and self.clip_bit_noise <= self.noise_multiplier / 2:
            raise ValueError(
                "privacy.clip_bit_noise has to be above half of privacy.noise_multiplier: with "
                "less the lengths alone would reveal what is allowed for all"
            )
        if self.parameters is not None and self.mechanism in MECHANISMS:
            raise ValueError(
                "[privacy.parameters] are for a mechanism of your own, and "
                f"{self.mechanism} is none"
            )
        if self.sampling and self.mechanism != "gaussian":
            raise ValueError(
                "privacy.sampling = 'poisson' goes with privacy.mechanism = 'gaussian'"
            )
        return self


def check_privacy(experiment: Experiment, stored: bool) -> None:
    """Raises: ValueError where ``[privacy]`` does not go with the rest of the experiment."""
    table = experiment.privacy
    if table is None:
        return
    if not stored:
        MECHANISM.check_name("privacy.mechanism", table.mechanism, MECHANISMS)
    participation = experiment.participation
    if participation.selection in BY_DATA:
        raise ValueError(
            f"participation.selection = {participation.selection!r} chooses by what clients learn "
            "from their data, and [privacy] needs a schedule that does not depend on any: uniform, "
            "or min-separation"
        )
    if table.mechanism == "banded-mf" and separation_of(experiment) < 2:
        raise ValueError(
            "privacy.mechanism = 'banded-mf' needs clients that rest: participation.selection = "
            "'min-separation', with its bands as selection_parameters.separation, 2 or more"
        )
    if table.sampling:
        _check_sampling(experiment)


def separation_of(experiment: Experiment) -> int:
    """A client counts in one of so many versions in a row at most, as its selection guarantees."""
    table = experiment.participation
    if table.selection != "min-separation":
        return 1
    separation = (table.selection_parameters or {}).get("separation", 1)
    return separation if isinstance(separation, int) else 1


def _check_sampling(experiment: Experiment) -> None:
    participation, aggregation = experiment.participation, experiment.aggregation
    wrong = {
        "participation.mode = 'cohort'": participation.mode != "cohort",
        "participation.over_selection = 1": participation.over_selection > 1,
        "no aggregation.quorum": aggregation.quorum is not None,
        "aggregation.on_deadline = 'step'": aggregation.on_deadline != "step",
        "participation.selection = 'uniform'": participation.selection != "uniform",
        "no participation.residents": bool(experiment.residents),
        "no aggregation.deterministic": aggregation.deterministic,
        "participation.sampling_rate below 1": participation.sampling_rate == 1,
    }
    for needed, missing in wrong.items():
        if missing:
            raise ValueError(
                f"privacy.sampling = 'poisson' needs {needed}: whoever is chosen has to count, and "
                "nobody else"
            )
