"""Client algorithms as an experiment names them, with their parameters, and what they keep.

A strategy asks for its own (SCAFFOLD, FedNova); ``[training] algorithm`` names any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fluffle.schemas.extensions import ALGORITHM
from fluffle.schemas.user_code import is_custom

#: What a strategy may ask of clients beyond the model's update: SCAFFOLD's control variates
#: (arXiv 1910.06378, equation 4, option I or II), FedNova's ||a||_1 (arXiv 2007.07481, equation 5),
#: FedDyn's regularised loss (arXiv 2111.04263).
Asks = Literal["control-variate-I", "control-variate-II", "normaliser", "feddyn"]

#: What a parameter of user code may be.
Scalar = bool | int | float | str | list[bool | int | float | str]


class Parameters(BaseModel):
    """What one algorithm takes as ``[training.algorithm_parameters]``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FedProx(Parameters):
    """FedProx: its mu is ``training.proximal_mu``."""


class Moon(Parameters):
    """MOON (arXiv 2103.16257)."""

    #: The weight of the contrastive loss.
    mu: float = Field(1.0, gt=0, allow_inf_nan=False)
    #: T
    temperature: float = Field(0.5, gt=0, allow_inf_nan=False)


class Ditto(Parameters):
    """Ditto (arXiv 2012.04221)."""

    #: How strongly the personal model is pulled to the global one (lambda).
    pull: float = Field(1.0, ge=0, allow_inf_nan=False)


class FedRep(Parameters):
    """FedRep (arXiv 2102.07078): its heads are what ``[weights] keep`` names."""

    #: So many of ``training.epochs`` are the head's, the rest the body's. Default: all but one.
    head_epochs: int | None = Field(None, ge=1)


#: What ``training.algorithm`` may name.
ALGORITHMS: Mapping[str, type[Parameters]] = {
    "fedprox": FedProx,
    "moon": Moon,
    "ditto": Ditto,
    "fedrep": FedRep,
}
#: Their clients keep something from one turn to the next.
WITH_STATE = ("moon", "ditto")
#: Strategies that bring their clients' algorithm with them.
OF_STRATEGY = ("scaffold", "fednova", "feddyn")


def state_of(asks: Asks | None, algorithm: str | None, keep_state: bool | None) -> bool:
    """Whether the algorithm's clients keep something from one turn to the next."""
    asked = asks in ("control-variate-I", "control-variate-II", "feddyn")
    return asked or algorithm in WITH_STATE or bool(keep_state)


def check_algorithm(
    name: str | None,
    parameters: Mapping[str, Any] | None,
    keep_state: bool | None,
    strategy: str,
    task: str,
) -> None:
    """Raises: ValueError where a client's algorithm does not go with the rest."""
    if keep_state and (name is None or name in ALGORITHMS) and not is_custom(task):
        raise ValueError(
            "training.keep_state goes with training.algorithm = 'FILE.py:Class', or an ArrayTask"
        )
    if name is None:
        if parameters is not None:
            raise ValueError("[training.algorithm_parameters] say nothing without an algorithm")
        return
    if strategy in OF_STRATEGY and (name, strategy) != ("fedprox", "fednova"):
        raise ValueError(
            f"{strategy} brings its clients' algorithm with it: remove training.algorithm"
        )
    if name not in ALGORITHMS:
        return
    try:
        ALGORITHMS[name].model_validate(parameters or {})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["training.algorithm_parameters", *map(str, first["loc"])])
        known = ", ".join(ALGORITHMS[name].model_fields) or "none"
        raise ValueError(f"{where}: {first['msg']} (the parameters of {name}: {known})") from None


def check_fedrep(
    parameters: Mapping[str, Any] | None,
    epochs: int,
    keeps_weights: bool,
    stragglers: bool,
    optimizer_parameters: Mapping[str, Any] | None,
) -> None:
    """Raises: ValueError where the phases of a turn cannot be as the paper has them."""
    if not keeps_weights:
        raise ValueError(
            "training.algorithm = 'fedrep' needs [weights] keep, which says what of the model is "
            'the client\'s head: keep = ["head/*"]'
        )
    head = FedRep.model_validate(parameters or {}).head_epochs
    if epochs <= (head or 1):
        raise ValueError(
            f"fedrep: training.epochs = {epochs} are the head's and then the body's, so more than "
            f"training.algorithm_parameters.head_epochs ({head or 1})"
        )
    if stragglers:
        raise ValueError(
            "fedrep: devices.stragglers do fewer epochs, which leaves a turn without its head or "
            "its body: set stragglers = 0"
        )
    for key in ("gradient_accumulation_steps", "use_ema"):
        if (optimizer_parameters or {}).get(key):
            raise ValueError(
                f"fedrep: training.optimizer_parameters.{key} goes on from the head's epochs into "
                "the body's: leave it out"
            )


def refuse_unknown(name: str | None) -> None:
    """Raises: ValueError for an algorithm that nobody here can mean."""
    if name in OF_STRATEGY:
        raise ValueError(
            f"training.algorithm = {name!r} comes with its strategy: set aggregation.strategy = "
            f"{name!r} in its place"
        )
    if name is not None:
        ALGORITHM.check_name("training.algorithm", name, ALGORITHMS)
