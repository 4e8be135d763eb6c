"""Distributions of this tree, built in a copy, and environments that have them installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.docs import ROOT

#: What is no part of a checkout, or of no use to a build.
LEFT_OUT = (".*", "__pycache__", "*.egg-info", "build", "runs", "tests", "benchmarks", "docs")


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; it has to end with code 0. Nothing of ours is on its path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: str | Path, cwd: Path) -> None:
    """Run pip: no network, no isolated build."""
    offline = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    run(sys.executable, "-m", "pip", arguments[0], *offline, *arguments[1:], cwd=cwd)


class Environment:
    """A virtual environment with this one's dependencies, and without this tree."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        (self.packages,) = folder.glob("lib/python*/site-packages")
        # Lines of a .pth file only extend the path: no editable install in there is followed.
        theirs = [place for place in sys.path if place.endswith("-packages")]
        (self.packages / "dependencies.pth").write_text("\n".join(theirs))

    def install(self, *distributions: Path) -> None:
        """Install wheels or an sdist."""
        pip("install", "--target", self.packages, *distributions, cwd=self.packages)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree: a build leaves its folders there."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return copy


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--wheel-dir", folder, ".", cwd=source)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="session")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=source)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel."""
    environment = Environment(tmp_path_factory.mktemp("installed"))
    environment.install(wheel)
    return environment
