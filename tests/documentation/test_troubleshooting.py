"""What troubleshooting says that one sees is what the code says, word for word."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.docs import ROOT, text_of

ROOMS = ("schemas", "broker", "aggregator", "worker", "simulation", "fluffle")
#: Symptoms are the first cells of tables; `…` stands for what differs.
SYMPTOMS = re.findall(r"^\| ([^|]*`[^|]*)\|", text_of("docs/troubleshooting.md"), re.M)


@cache
def said() -> list[str]:
    """Every string of the code, `…` for what is filled in, and the Makefile's."""
    texts = re.findall(r'"([^"\n]+)"', (ROOT / "Makefile").read_text())
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


def is_said(symptom: str) -> bool:
    """Whether a text has all pieces of the symptom in order, or fills itself up to it."""
    pieces = [re.escape(piece.strip()) for piece in symptom.split("…") if piece.strip()]
    wanted = re.compile(".*".join(pieces), re.S)
    if any(wanted.search(text) for text in said()):
        return True
    filled = (t for t in said() if "…" in t and len(t.replace("…", "").strip()) >= 12)
    return any(re.fullmatch(re.escape(t).replace("…", ".+"), symptom) for t in filled)


@pytest.mark.parametrize("cell", SYMPTOMS)
def test_every_line_that_a_person_may_see_is_one_that_the_code_says(cell: str) -> None:
    symptoms = [s for s in re.findall(r"`([^`]+)`", cell) if " " in s]
    commands = ("fluffle ", "compose", "/")
    for symptom in symptoms:
        assert symptom.startswith(commands) or is_said(symptom), symptom


def test_a_line_that_nobody_says_is_noticed() -> None:
    assert len(SYMPTOMS) > 50
    assert not is_said("no RabbitMQ at …, given up after … s")
