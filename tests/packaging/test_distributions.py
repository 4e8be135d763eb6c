"""What is installed is one name, ``fluffle``, however it is built."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.docs import ROOT
from tests.packaging.conftest import Environment, pip, run

pytestmark = pytest.mark.slow

ROOMS = ("aggregator", "broker", "helper", "schemas", "simulation", "worker")
#: Files that are no Python, which the code reads or type checkers look for.
DATA = (
    "fluffle/broker/admin/rabbitmq.conf",
    "fluffle/live/page.css",
    "fluffle/live/page.html",
    "fluffle/live/page.js",
    "fluffle/py.typed",
    "fluffle/report/page.html.j2",
    "fluffle/experiments/mnist.toml",
    "fluffle/start/keras/README.md",
    "fluffle/start/keras/experiment.toml",
    "fluffle/start/notebook/first.ipynb",
)
#: Which of the rooms' names can be imported, and where fluffle is.
LOOK = f"""
import importlib.util, fluffle.schemas, fluffle.worker.tasks.task
print([name for name in {ROOMS} if importlib.util.find_spec(name)], fluffle.__file__)
"""


def modules() -> set[str]:
    """Every Python file of the tree that belongs to ``fluffle``, by its place in the package."""
    rooms = [("fluffle/" + room, ROOT / room) for room in ROOMS]
    return {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in [*rooms, ("fluffle", ROOT / "fluffle")]
        for path in folder.rglob("*.py")
    }


def test_a_wheel_holds_fluffle_with_every_module_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"fluffle"}
    assert {name for name in names if name.endswith(".py")} == modules()
    assert set(DATA) <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_an_installed_wheel_brings_only_fluffle(installed: Environment, tmp_path: Path) -> None:
    found = run(installed.python, "-c", LOOK, cwd=tmp_path)
    assert found.strip() == f"[] {installed.packages / 'fluffle' / '__init__.py'}"
    assert run(installed.python, "-m", "fluffle", "--help", cwd=tmp_path)


def test_an_sdist_holds_the_modules_once_and_installs_like_the_wheel(
    sdist: Path, wheel: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
        assert not any(one.issym() for one in packed.getmembers())
    assert modules() == {name for name in names if name.endswith(".py")}

    # When it is built and installed where the tree is not
    environment = Environment(tmp_path / "environment")
    environment.install(sdist)
    # Then the same files are there
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("fluffle/")}
    there = {
        path.relative_to(environment.packages).as_posix()
        for path in (environment.packages / "fluffle").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert there == packed
    found = run(environment.python, "-c", LOOK, cwd=tmp_path)
    assert found.startswith("[] ")


def test_an_editable_install_sees_a_new_file_at_once_and_brings_only_fluffle(
    source: Path, tmp_path: Path
) -> None:
    # Given an editable install
    environment = Environment(tmp_path / "environment")
    pip("install", "--target", environment.packages, "--editable", source, cwd=tmp_path)
    assert run(environment.python, "-c", LOOK, cwd=tmp_path).startswith(f"[] {source}")
    # When a file appears in a room at the top
    new = source / "broker" / "just_written.py"
    new.write_text("HERE = 1\n")
    try:
        # Then it is there, under the one name
        code = "from fluffle.broker.just_written import HERE; print(HERE)"
        assert run(environment.python, "-c", code, cwd=tmp_path) == "1\n"
    finally:
        new.unlink()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_beside_another_distribution_with_the_rooms_names_neither_is_overwritten(
    wheel: Path, tmp_path: Path, order: tuple[int, int]
) -> None:
    # Given somebody else's distribution, whose packages have the names of our rooms
    other = tmp_path / "other"
    for room in ROOMS:
        (other / room).mkdir(parents=True)
        (other / room / "__init__.py").write_text(f"THEIRS = {room!r}\n")
    (other / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "other"\nversion = "1"\n[tool.setuptools]\npackages = {[*ROOMS]}\n'
    )
    pip("wheel", "--wheel-dir", tmp_path, ".", cwd=other)
    (theirs,) = tmp_path.glob("other-*.whl")
    # When both are installed, in either order
    environment = Environment(tmp_path / "environment")
    for which in order:
        environment.install((wheel, theirs)[which])
    # Then every file of both is as it was packed
    for distribution in (wheel, theirs):
        packed = zipfile.ZipFile(distribution)
        for name in packed.namelist():
            if not name.endswith("RECORD"):
                assert (environment.packages / name).read_bytes() == packed.read(name), name
    code = "import schemas, fluffle.schemas; print(schemas.THEIRS, fluffle.schemas.Tensors)"
    assert run(environment.python, "-c", code, cwd=tmp_path).startswith("schemas ")


@pytest.mark.parametrize(
    "line", ["import broker", "from schemas.codec import decode", "from worker import tasks"]
)
def test_a_room_that_is_imported_by_its_name_at_the_top_is_refused_by_the_linter(line: str) -> None:
    ruff = [sys.executable, "-m", "ruff", "check", "--stdin-filename", "fluffle/new.py", "-"]
    checked = subprocess.run(ruff, input=f"{line}\n", cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 1
    assert "TID251" in checked.stdout
