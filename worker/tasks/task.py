"""A task: a Keras model and the examples of every client."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas import UserError
from fluffle.schemas.experiment import PartitionTable, TaskTable
from fluffle.worker.datasets import Progress
from fluffle.worker.tasks.partitions import held_out, partition
from fluffle.worker.tasks.structure import count_of, mapped

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


class Examples(NamedTuple):
    """Inputs and targets; the first axis of both counts the examples.

    Where a model has several inputs or outputs: a dict, list or tuple of arrays, as it takes them.
    """

    x: Any
    y: Any


class Task(ABC):
    """One instance is shared by all trainers of a process, in several threads.

    Arrays stay in the dtype they come in: ``preprocess`` casts batch by batch inside the compiled
    training loop.

    A resident client (a site) has a task of its own machine: ``dataset()`` is all that it trains
    on, ``test()`` what it holds out to measure the global model and its own.

    >>> class Signs(Task):
    ...     def model(self):
    ...         import keras
    ...         return keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, "softmax")])
    ...     def dataset(self):
    ...         x = np.array([[-2.0], [-1.0], [1.0], [2.0]], np.float32)
    ...         return Examples(x, (x[:, 0] > 0).astype(np.int32))
    ...     def test(self):
    ...         return self.dataset()
    >>> Signs(clients=2, partition=PartitionTable(), seed=0).client_indices("1").tolist()
    [2, 3]
    """

    #: A Keras loss, by name or object.
    loss: Any = "sparse_categorical_crossentropy"
    #: Keras metrics, by name or object. None: accuracy where the loss is a cross-entropy.
    metrics: Sequence[Any] | None = None
    #: What each output's loss counts, by name or in order, as Keras's ``compile`` takes it.
    loss_weights: Any = None
    #: What an example of a class counts in the training loss, as Keras's ``fit`` takes it: {0: 1.0,
    #: 1: 9.0}. None: all the same.
    class_weight: Mapping[int, float] | None = None
    #: Where the data are: what ``--data`` says, a folder or a file; else the folder of the task's
    #: file. Set once a task from a file is made.
    data_dir: Path
    #: Which share of ``dataset()`` no client trains on. Set once a task of an experiment is made.
    validation_share: float = 0.0
    #: Whether that share is taken from ``dataset()``: not where examples are measured or dealt out
    #: in another way.
    holds_out: ClassVar[bool] = True

    def __init__(self, clients: int, partition: PartitionTable, seed: int) -> None:
        self.clients = clients
        self.partition = partition
        self.seed = seed

    @classmethod
    def of(cls, table: TaskTable, partition: PartitionTable, seed: int) -> Self:
        """The task that an experiment names. Overridden by those that have parameters.

        An ``__init__`` of the user's own may take (clients, partition, seed), some of them by name,
        or nothing; they are set before it is called. ``[task.parameters]`` come by name. Raises:
        UserError where it wants others.
        """
        task = cls.__new__(cls)
        task.clients, task.partition, task.seed = table.clients, partition, seed
        given = {"clients": table.clients, "partition": partition, "seed": seed}
        if table.parameters:
            return cls._with_parameters(task, given, table.parameters)
        signature = inspect.signature(task.__init__)  # type: ignore[misc]
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        wanted = given.keys() if inspect.Parameter.VAR_KEYWORD in kinds else signature.parameters
        try:
            if inspect.Parameter.VAR_POSITIONAL in kinds:
                bound = signature.bind(*given.values())
            else:
                bound = signature.bind(**{k: v for k, v in given.items() if k in wanted})
        except TypeError:
            try:
                bound = signature.bind(*given.values())
            except TypeError:
                raise UserError(
                    f"{cls.__name__}.__init__{signature} wants others than a task is made with: "
                    "clients, partition and seed, or nothing"
                ) from None
        task.__init__(*bound.args, **bound.kwargs)  # type: ignore[misc]
        return task

    @classmethod
    def _with_parameters(
        cls, task: Self, given: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> Self:
        signature = inspect.signature(task.__init__)  # type: ignore[misc]
        names = [
            name
            for name, one in signature.parameters.items()
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        ]
        any_name = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
        for key in parameters:
            if key in given:
                raise UserError(f"task.parameters.{key}: {key} is set elsewhere, leave it out")
            if key not in names and not any_name:
                known = ", ".join(name for name in names if name not in given) or "none"
                raise UserError(
                    f"task.parameters.{key}: {cls.__name__}.__init__ takes no such (but {known})"
                )
        wanted = {key: value for key, value in given.items() if any_name or key in names}
        try:
            bound = signature.bind(**wanted, **parameters)
        except TypeError as error:
            raise UserError(
                f"{cls.__name__}.__init__{signature} cannot be called with [task.parameters]: "
                f"{error}"
            ) from None
        task.__init__(*bound.args, **bound.kwargs)  # type: ignore[misc]
        return task

    @classmethod  # noqa: B027 a task may need nothing
    def prepare(cls, progress: Progress) -> None:
        """Fetch what the task needs; called once, before training. Raises: UserError."""

    @abstractmethod
    def model(self) -> keras.Model:
        """A new, built model. Its caller seeds the initial weights."""

    @abstractmethod
    def dataset(self) -> Examples:
        """The training examples of all clients."""

    @abstractmethod
    def test(self) -> Examples:
        """The examples that an evaluation uses; no client has them."""

    def validation(self) -> Examples | None:
        """The examples that decisions are made on (target_accuracy, patience, best.keras).

        None: a share of ``dataset()`` that no client trains on, as ``task.validation`` says.
        """
        return None

    def owners(self) -> NDArray[Any] | None:
        """Whose each example of ``dataset()`` is, 0 to N - 1; None where it is nobody's.

        Partition kind ``natural`` makes owner k client k.
        """
        return None

    def test_owners(self) -> NDArray[Any] | None:
        """Whose each example of ``test()`` is, as in ``owners``; None where it is nobody's.

        With partition kind ``natural``, ``evaluation.by_client`` measures each client on its own.
        """
        return None

    def sample_weights(self) -> NDArray[Any] | None:
        """What each example of ``dataset()`` counts in the training loss; None: all the same."""
        return None

    def client_indices(self, client: str) -> NDArray[np.int32]:
        """Which examples of ``dataset()`` this client holds: a resident, which has a name, all.

        Raises: ValueError.
        """
        if not client.isdecimal():
            return self._all
        if int(client) >= self.clients:
            raise ValueError(f"there is no client {client!r}: they are 0 to {self.clients - 1}")
        return self._partition[int(client)]

    def preprocess(self, x: Any) -> Any:
        """A batch of inputs (a tensor, in the graph) as the model takes it."""
        return x

    @cached_property
    def decided_on(self) -> tuple[Literal["validation", "dataset"], NDArray[np.int32]] | None:
        """Which of what ``examples_of`` gives are for decisions; None where these are made on the
        test examples.
        """
        found = self.validation()
        if found is not None:
            count = count_of(examples_of(self, "validation").y)
            return "validation", np.arange(count, dtype=np.int32)
        return ("dataset", self._held_out) if len(self._held_out) else None

    @cached_property
    def _held_out(self) -> NDArray[np.int32]:
        deals = type(self).client_indices is Task.client_indices and type(self).holds_out
        if not (self.validation_share and deals) or self.validation() is not None:
            return np.zeros(0, np.int32)
        owners = self.owners() if self.partition.kind == "natural" else None
        count = count_of(examples_of(self, "dataset").y)
        return held_out(count, self.validation_share, self.seed, owners)

    @cached_property
    def _all(self) -> NDArray[np.int32]:
        return np.arange(count_of(examples_of(self, "dataset").y), dtype=np.int32)

    @cached_property
    def _partition(self) -> list[NDArray[np.int32]]:
        y, owners = examples_of(self, "dataset").y, self.owners()
        if not len(self._held_out):
            return partition(self.partition, y, self.clients, self.seed, owners)
        rest = np.delete(self._all, self._held_out)
        y = mapped(lambda array: np.asarray(array)[rest], y)
        owners = None if owners is None else np.asarray(owners)[rest]
        dealt = partition(self.partition, y, self.clients, self.seed, owners)
        return [rest[part] for part in dealt]


class StreamedTask(Task):
    """A task whose training examples do not fit in memory: each client's are a ``tf.data`` stream.

    Test examples are arrays, as ever. No partition deals a stream out: ``stream`` knows whose is
    what.
    """

    @abstractmethod
    def stream(self, client: str, seed: int) -> tf.data.Dataset:
        """One epoch of a client's training examples, (x, y) one by one, in an order by ``seed``.

        (x, y, weight) gives what each counts in the loss. The trainer makes batches of them, padded
        with zeros where their lengths differ, and reads ahead. The same (client, seed) has to give
        the same. A resident client has all that is here, whatever its name.
        """

    def examples(self, client: str) -> int | None:
        """How many examples this client's stream has in an epoch; None where that is not known.

        The virtual clock takes a training's time from it; nothing else asks.
        """
        return None

    holds_out = False

    def dataset(self) -> Examples:
        """The first examples of a stream: what examples look like."""
        for batch in batched(self.stream("0", 0).take(2), 2).as_numpy_iterator():
            return Examples(*batch[:2])
        return Examples(np.zeros(0), np.zeros(0))

    def client_indices(self, client: str) -> NDArray[np.int32]:
        """None: a stream has no indices. Raises: ValueError."""
        if client.isdecimal() and int(client) >= self.clients:
            raise ValueError(f"there is no client {client!r}: they are 0 to {self.clients - 1}")
        return np.zeros(0, np.int32)


#: Batches that are made ahead.
_AHEAD = 2


def batched(stream: tf.data.Dataset, size: int, whole: bool = False) -> tf.data.Dataset:
    """Batches of a stream's examples; ``whole`` leaves out a last one that is shorter."""
    import tensorflow as tf

    specs = tf.nest.flatten(stream.element_spec)
    if all(spec.shape.is_fully_defined() for spec in specs):
        batches = stream.batch(size, drop_remainder=whole)
    else:
        batches = stream.padded_batch(size, drop_remainder=whole)
    return batches.prefetch(_AHEAD)


def examples_of(task: Task, part: str) -> Examples:
    """What ``dataset()``, ``test()`` or ``validation()`` gives; an (x, y) pair will do.

    part: which of them. Raises: UserError where it is neither.
    """
    parts = {"dataset": task.dataset, "test": task.test, "validation": task.validation}
    found: Any = parts[part]()
    if hasattr(found, "x") and hasattr(found, "y"):
        return found if isinstance(found, Examples) else Examples(found.x, found.y)
    if isinstance(found, tuple) and len(found) == 2:
        return Examples(*found)
    kind = "nothing" if found is None else f"a {type(found).__name__}"
    of = f" of {len(found)}" if isinstance(found, tuple) else ""
    raise UserError(f"{part}() gave {kind}{of}: let it give Examples(x, y)")
