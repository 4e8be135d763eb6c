"""Data sets: found, fetched, checked by number, and mapped from a cache folder.

Looked for in the cache first, then where people have it already, then on the network, the package
indexes included. Whatever the source, every byte has to be the right one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fluffle.schemas import UserError
from fluffle.schemas.extensions import DATA_SET, from_file
from fluffle.schemas.user_code import is_custom
from fluffle.worker.datasets import cache
from fluffle.worker.datasets.cifar10 import CIFAR10
from fluffle.worker.datasets.digits import DIGITS
from fluffle.worker.datasets.fashion_mnist import FASHION_MNIST
from fluffle.worker.datasets.fed_heart import FED_HEART
from fluffle.worker.datasets.mnist import MNIST
from fluffle.worker.datasets.recipe import Arrays, Dataset, Expected, Progress, Read, Recipe, Source
from fluffle.worker.datasets.shakespeare import SHAKESPEARE
from fluffle.worker.datasets.wearables import WEARABLES

__all__ = [
    "Arrays",
    "Dataset",
    "Expected",
    "Progress",
    "Recipe",
    "Source",
    "describe",
    "fetch",
    "load",
    "names",
    "recipe",
]

_ALL = (MNIST, FASHION_MNIST, DIGITS, CIFAR10, SHAKESPEARE, WEARABLES, FED_HEART)
_RECIPES = {recipe.name: recipe for recipe in _ALL}


def names() -> list[str]:
    """The data sets that can be fetched."""
    return sorted(_RECIPES)


def describe() -> list[tuple[Recipe, Path | None]]:
    """Every data set with its folder in the cache, None where it is not there (or not whole)."""
    folders = [(recipe, cache.cache_folder() / recipe.name) for recipe in _RECIPES.values()]
    return [(recipe, path if cache.is_whole(recipe, path) else None) for recipe, path in folders]


def recipe(name: str) -> Recipe:
    """How a data set is fetched and what it has to be. Raises: UserError."""
    if name in _RECIPES:
        return _RECIPES[name]
    found = DATA_SET.plugin(name)
    if found is None and is_custom(name):
        found = from_file(DATA_SET.noun, name, Path())
    if found is None:
        known = ", ".join([*names(), *DATA_SET.installed()])
        raise UserError(
            f"there is no data set {name!r}: use one of {known}, or one of your own, as "
            "my_data.py:RECIPE"
        )
    if not isinstance(found, Recipe):
        raise UserError(f"the data set {name} is no fluffle.worker.datasets.Recipe")
    return found


def fetch(name: str, progress: Progress | None = None, brought: Path | None = None) -> Path:
    """The folder that holds the data set; fetched if it is not there.

    ``progress(what, bytes so far, bytes in all or None)`` is called along the way. ``brought`` is
    a file or folder of the user's, to be read instead of every other source.
    Raises: UserError.
    """
    wanted = recipe(name)
    if brought is not None:
        wanted = replace(wanted, sources=(Source(str(brought), _reader(wanted, brought)),))
    return cache.ensure(wanted, progress or _silent)


def load(name: str, progress: Progress | None = None) -> Dataset:
    """The data set, mapped from the cache; fetched first if it is not there. Raises: UserError."""
    return cache.open_dataset(fetch(name, progress))


def _reader(wanted: Recipe, path: Path) -> Read:
    def read(folder: Path, progress: Progress) -> Arrays:
        return wanted.opens(path)

    return read


def _silent(what: str, done: int, total: int | None) -> None:
    pass
