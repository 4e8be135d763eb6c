"""A class in a user's own Python file, named ``FILE.py:Class`` and loaded by its path.

The file becomes a module of a private name, so that a user's ``worker.py`` is not ours. Its folder
comes last on the module path: the file may import its neighbours, which shadow nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType

from fluffle.schemas.errors import UserError, contained, describe

_NAME = re.compile(r"[^:]+:[A-Za-z_]\w*")


def is_custom(name: str) -> bool:
    """Whether this names a class in a file: ``my_file.py:MyClass`` or ``my_file:MyClass``."""
    return _NAME.fullmatch(name) is not None


def place_of(name: str, folder: Path) -> tuple[Path, str]:
    """The file in ``folder`` and the class that a name means."""
    file, _, found = name.rpartition(":")
    return (folder / (file if file.endswith(".py") else f"{file}.py")).resolve(), found


def load_class(path: Path, name: str) -> type:
    """The class of this name in the file at ``path``, which is executed once.

    Raises: UserError where there is no such file or class, or the file cannot be executed.
    """
    found = getattr(load_module(path), name, None)
    if not isinstance(found, type):
        raise UserError(f"{path} has no class {name}")
    return found


def explain(error: BaseException, path: Path) -> str:
    """What the code at ``path`` raised, and in which of its lines: one line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    where = f"{path.name}, line {lines[-1]}: " if lines else ""
    return f"{where}{describe(error, 500)}"


@cache
def load_module(path: Path) -> ModuleType:
    """The module that the file at ``path`` is, executed once. Raises: UserError."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    name = f"fluffle_own_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        contained(error)
        raise UserError(f"{path} cannot be loaded: {explain(error, path)}") from error
    return module
