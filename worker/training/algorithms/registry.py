"""The registry of client algorithms: what a plan means, and the way to one of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fluffle.schemas import Plan, UserError, user_code
from fluffle.schemas.algorithms import ALGORITHMS, Asks
from fluffle.schemas.experiment import TrainingTable
from fluffle.schemas.extensions import ALGORITHM, guarded, told
from fluffle.worker.tasks import custom
from fluffle.worker.training.algorithms.base import Algorithm
from fluffle.worker.training.algorithms.ditto import Ditto
from fluffle.worker.training.algorithms.feddyn import FedDyn
from fluffle.worker.training.algorithms.fednova import FedNova
from fluffle.worker.training.algorithms.fedprox import FedProx
from fluffle.worker.training.algorithms.fedrep import FedRep
from fluffle.worker.training.algorithms.moon import Moon
from fluffle.worker.training.algorithms.scaffold import Scaffold

T = TypeVar("T")

#: What a strategy asks for by name.
_ASKED: dict[Asks, Callable[[Plan], Algorithm]] = {
    "control-variate-I": lambda plan: Scaffold(),
    "control-variate-II": lambda plan: Scaffold(),
    "feddyn": lambda plan: FedDyn(),
    "normaliser": lambda plan: FedNova(plan.training.proximal_mu or 0.0),
}


#: What ``training.algorithm`` names.
_NAMED: dict[str, Callable[..., Algorithm]] = {"moon": Moon, "ditto": Ditto, "fedrep": FedRep}


def check(table: TrainingTable) -> None:
    """Raises: UserError if an algorithm of one's own cannot be made; better before than while."""
    if table.algorithm is not None and table.algorithm not in ALGORITHMS:
        _custom(table.algorithm, table.algorithm_parameters or {})


def algorithm_of(plan: Plan) -> Algorithm:
    """The plan's algorithm, a new object. Raises: UserError where it cannot be made."""
    name = plan.training.algorithm
    if plan.asks is not None:
        return _ASKED[plan.asks](plan)
    if name is not None and name not in ALGORITHMS:
        return _custom(name, plan.training.algorithm_parameters or {})
    if name in _NAMED:
        parameters = ALGORITHMS[name].model_validate(plan.training.algorithm_parameters or {})
        return _NAMED[name](**parameters.model_dump())
    return FedProx(plan.training.proximal_mu or 0.0)


def trying(algorithm: Algorithm, action: Callable[[], T]) -> T:
    """What the code of a user's own raises is theirs to mend. Raises: UserError in its place."""
    if type(algorithm).__module__.startswith(f"{__package__}."):
        return action()
    return guarded("algorithm", algorithm, action)


def _custom(name: str, parameters: dict[str, Any]) -> Algorithm:
    """Of the class ``FILE.py:Class``, which lies where tasks do, or of an installed package.

    Raises: UserError.
    """
    found: Any = user_code.given(name, "algorithm")
    where = f"{name.rpartition(':')[2]} in this process"
    if found is not None:
        pass
    elif user_code.is_custom(name):
        path, class_name = custom.place_named_by_plan(name, "algorithm")
        found, where = user_code.load_class(path, class_name), f"{class_name} in {path}"
    else:
        found, where = ALGORITHM.load(name), f"{name} in the installed package"
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(f"{where} is no fluffle.Algorithm")
    try:
        return found(**parameters)
    except Exception as error:
        raise UserError(
            f"cannot make the algorithm with [training.algorithm_parameters]: {told(error, found)}"
        ) from error
