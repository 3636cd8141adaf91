"""Every correctness rule has tests that name it, and mutants that prove that they can fail.

A test names a rule in its docstring ("Rule 5", "rules 2, 4, 11"). The mutants stand in tests/mutants/table.py; `make
mutants` runs them, here is only checked that each still fits the code and names a test that is there.
"""
from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from tests.mutants.mutant import PRIMARY_STATES, SECONDARY_STATES, Mutant
from tests.mutants.table import MUTANTS

TOP = Path(__file__).resolve().parents[2]
WITHOUT_MUTANTS: set[int] = set()
RULES_ALL = range(1, 30)
RULES = re.compile(r"\brules? ((?:[0-9]+[a-e]?(?:, | and | to |, and )?)+)", re.IGNORECASE)


def rules_in(text: str) -> set[int]:
    """Numbers of the rules that a docstring names; "rules 18 to 20" are three."""
    found: set[int] = set()
    for names in RULES.findall(text):
        for first, last in re.findall(r"([0-9]+)[a-e]?(?: to ([0-9]+))?", names):
            found |= set(range(int(first), int(last or first) + 1))
    return found


@cache
def naming() -> dict[int, list[str]]:
    """rule -> tests that name it in their own docstring, or in that of their module."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted((TOP / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        shared = rules_in(ast.get_docstring(tree) or "") if path != Path(__file__) else set()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for rule in shared | rules_in(ast.get_docstring(node) or ""):
                    found[rule].append(f"{path.relative_to(TOP)}::{node.name}")
    return found


def test_rules_are_read() -> None:
    """The forms in which docstrings name rules."""
    assert rules_in("Rules 2, 4, 11: x") == {2, 4, 11}
    assert rules_in("(rule 26e: no) and rules 18 to 20, and Rule 5.") == {18, 19, 20, 26, 5}
    assert rules_in("Rules 6 and 14: fetched; the ruler 7") == {6, 14}


@pytest.mark.parametrize("rule", RULES_ALL)
def test_every_rule_has_a_test(rule: int) -> None:
    """A rule that no test names may be broken by anybody."""
    assert naming()[rule], f"no test names rule {rule}"


@pytest.mark.parametrize("rule", RULES_ALL)
def test_every_rule_has_mutants(rule: int) -> None:
    """At least one way to break it (two where one host alone can), and each is found by a test that names the rule."""
    own = [mutant for mutant in MUTANTS if mutant.rule == rule and not mutant.by_states]
    assert bool(own) != (rule in WITHOUT_MUTANTS) and (rule > 12 or len(own) >= 2)
    named = naming()[rule]
    assert [m.name for m in own if not any(m.test.partition("[")[0] == test for test in named)] == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_fits(mutant: Mutant) -> None:
    """The texts that a mutant changes are there once; its test exists."""
    for file, old, new in mutant.changes:
        assert (TOP / file).read_text(encoding="utf-8").count(old) == 1 and old != new, file
    if mutant.by_states:
        assert mutant.test in (PRIMARY_STATES, SECONDARY_STATES)
        return
    path, _, function = mutant.test.partition("::")
    tree = ast.parse((TOP / path).read_text(encoding="utf-8"))
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert function.partition("[")[0] in functions


def test_names_of_mutants_differ() -> None:
    """They are how one is chosen."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
