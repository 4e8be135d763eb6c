"""A class in a user's own Python file, named ``FILE.py:Class`` and loaded by its path.

The file becomes a module of a private name, so that a user's ``worker.py`` is not ours. Its folder
comes last on the module path: the file may import its neighbours, which shadow nothing.

Processes that the file starts (``multiprocessing``, spawn and forkserver) import it by that name:
it is below this module's, whose loader finds files in the environment.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from fluffle.schemas.errors import UserError, contained, describe

#: How the name of a class begins that this process has been given itself.
HERE = "python"
_here: dict[str, type] = {}
#: When each file that was loaded had been changed last.
_stamps: dict[Path, int] = {}
_NAME = re.compile(r"[^:]+:[A-Za-z_]\w*")
#: The files that this process or its parents have loaded.
_FILES = "FLUFFLE_OWN_FILES"
#: Makes this module a package, of the user's files.
__path__: list[str] = []


def give(made: type) -> str:
    """Have a class of this process by a name that an experiment may use; that name.

    A later class of the same name takes its place: a cell of a notebook was run again.
    """
    name = f"{HERE}:{made.__name__}"
    _here[name] = made
    return name


def given(name: str, what: str) -> type | None:
    """The class that this process has been given by this name; None where the name is another's.

    what: what it is to be, for an error. Raises: UserError where another process was given it.
    """
    if name in _here or not name.startswith(f"{HERE}:"):
        return _here.get(name)
    made = name.removeprefix(f"{HERE}:")
    raise UserError(
        f"the experiment's {what} {made} is a class of the Python process that began it, and code "
        f"does not travel to another: put it into a file, my_file.py, and name it "
        f"my_file.py:{made}; or give the class again, by running what defines it"
    )


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


def file_of(made: type) -> Path:
    """The file that a class is defined in; of a cell of a notebook its name, which is no file."""
    try:
        return Path(inspect.getfile(made))
    except (TypeError, OSError):  # of a notebook or an interpreter
        codes = (getattr(member, "__code__", None) for member in vars(made).values())
        return Path(next((code.co_filename for code in codes if code), f"<{made.__name__}>"))


def explain(error: BaseException, path: Path) -> str:
    """What the code at ``path`` raised, and in which of its lines: one line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    where = f"{path.name}, line {lines[-1]}: " if lines else ""
    return f"{where}{describe(error, 500)}"


def forget_changed() -> None:
    """Have files that were changed since they were loaded be loaded anew, when next they are named.

    Between two runs of a process, never within one: all of a run has the same code.
    """
    for path, stamp in _stamps.items():
        if not path.is_file() or path.stat().st_mtime_ns != stamp:
            load_module.cache_clear()
            _stamps.clear()
            return


@cache
def load_module(path: Path) -> ModuleType:
    """The module that the file at ``path`` is, executed once. Raises: UserError."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    _stamps[path] = path.stat().st_mtime_ns
    known = os.environ.get(_FILES, "").split(os.pathsep)
    if str(path) not in known:
        os.environ[_FILES] = os.pathsep.join([*filter(None, known), str(path)])
    name = _module_name(str(path))
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


def _module_name(path: str) -> str:
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{__name__}.own_{digest[:16]}"


class _Finder:
    """Finds the modules of users' files in processes that did not load them by path."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        """The spec of one of them; None for all other modules."""
        if not name.startswith(f"{__name__}.own_"):
            return None
        for file in os.environ.get(_FILES, "").split(os.pathsep):
            if _module_name(file) == name:
                return importlib.util.spec_from_file_location(name, file)
        return None


sys.meta_path.append(_Finder)
