"""What lies beside the code says what the code says: the map, the version, what is locked."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docs import ROOT, modules

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
#: What each file of requirements/ is locked from.
LOCKED = {
    "cpu": [*PROJECT["dependencies"], *EXTRAS["cpu"], *EXTRAS["report"]],
    "gpu": [*PROJECT["dependencies"], *EXTRAS["gpu"], *EXTRAS["report"]],
    "dev": [
        *PROJECT["dependencies"],
        *(
            line
            for extra in ("data", "report", "privacy", "pandas", "docs", "dev")
            for line in EXTRAS[extra]
        ),
    ],
    "build": PYPROJECT["build-system"]["requires"],
}


def pins(name: str) -> list[tuple[str, str]]:
    """Names and versions in a file of requirements/; one may have several, by Python's version."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return re.findall(r"^([\w.-]+)==([^ ]+)", text, re.M)


def test_every_module_has_its_line_in_the_map() -> None:
    written = modules.PAGE.read_text(encoding="utf-8")
    assert written == modules.page(), "python scripts/modules.py"


def test_every_room_has_its_line_in_contributing() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = [f"{package.as_posix()}/" for package in modules.packages()]
    assert re.findall(r"^\| `([\w/]+/)` \| ", page, re.M)[: len(rooms)] == rooms


@pytest.mark.parametrize("name", LOCKED)
def test_what_is_locked_is_what_pyproject_asks_for(name: str) -> None:
    # Given what is locked
    versions = pins(name)
    for line in LOCKED[name]:
        asked = Requirement(line)
        # Then everything that is asked for is there, and may be of that version
        found = [v for n, v in versions if n == canonicalize_name(asked.name)]
        assert found, f"make lock: {asked.name} is not in requirements/{name}.txt"
        assert all(map(asked.specifier.contains, found)), f"make lock: {asked}, not {found}"


@pytest.mark.parametrize("name", LOCKED)
def test_every_locked_version_has_hashes_and_no_file_names_an_index(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.M)[1:]
    assert len(blocks) == len(pins(name))
    assert all("--hash=sha256:" in block for block in blocks)
    assert not re.search(r"://|--index-url|--find-links", text)


def test_the_files_agree_on_versions() -> None:
    both = set(pins("cpu"))
    assert {p for p in pins("dev") if p[0] in dict(both)} <= both
    assert {p for p in pins("gpu") if p[0] in dict(both)} <= both


def test_the_citation_is_of_this_version_and_license() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.name)
def test_what_a_workflow_makes_is_a_target(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make ([a-z-]+)", path.read_text())) <= targets


def test_links_of_the_papers_lead_somewhere() -> None:
    for paper in ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"):
        for link in re.findall(r"\]\(([^)\s#]+)", (ROOT / paper).read_text()):
            assert re.match(r"\w+:", link) or (ROOT / link).exists(), f"{paper} links to {link}"
