"""Data sets: found, fetched, checked by number, and mapped from a cache folder.

Looked for in the cache first, then where people have it already, then on the network, the package
indexes included. Whatever the source, every byte has to be the right one.
"""

from __future__ import annotations

from pathlib import Path

from schemas import UserError
from worker.datasets import cache
from worker.datasets.mnist import MNIST
from worker.datasets.recipe import Dataset, Progress, Recipe

__all__ = ["Dataset", "Progress", "Recipe", "describe", "fetch", "load", "names"]

_RECIPES = {recipe.name: recipe for recipe in (MNIST,)}


def names() -> list[str]:
    """The data sets that can be fetched."""
    return sorted(_RECIPES)


def describe() -> list[tuple[Recipe, Path | None]]:
    """Every data set with its folder in the cache, None where it is not there (or not whole)."""
    folders = [(recipe, cache.cache_folder() / recipe.name) for recipe in _RECIPES.values()]
    return [(recipe, path if cache.is_whole(recipe, path) else None) for recipe, path in folders]


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The folder that holds the data set; fetched if it is not there.

    ``progress(what, bytes so far, bytes in all or None)`` is called along the way.
    Raises: UserError.
    """
    if name not in _RECIPES:
        raise UserError(f"there is no data set {name!r}: use one of {', '.join(names())}")
    return cache.ensure(_RECIPES[name], progress or _silent)


def load(name: str, progress: Progress | None = None) -> Dataset:
    """The data set, mapped from the cache; fetched first if it is not there. Raises: UserError."""
    return cache.open_dataset(fetch(name, progress))


def _silent(what: str, done: int, total: int | None) -> None:
    pass
