"""The corpus and a short run of new cases against the normal build. `make fuzz` does more, under sanitizers."""
from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from marsx._ext import marsscan
from tests.fuzz import make, targets
from tests.fuzz.case import Case, corpus

NEW_CASES = 200


@pytest.mark.parametrize("path", corpus(), ids=lambda path: path.stem)
def test_corpus(path: Path) -> None:
    """Rules 5, 6: inputs that broke something once, and one for each verdict there is: the twin's opinion, no crash."""
    assert targets.run(Case.load(path))


def test_the_corpus_knows_every_verdict() -> None:
    """Every reason of the scan and every code is in it, each with the twin's consent; chains of several logs too."""
    verdicts = {targets.run(Case.load(path)) for path in corpus()}
    ends = [verdict.split()[1:3] for verdict in verdicts if verdict.startswith("log: ") and "refused" not in verdict]
    assert {reason for reason, _ in ends} == set(marsscan.REASONS) - {"limit"}
    assert {code for _, code in ends} == set(marsscan.CODES) - {"ok", "feature", "field"}
    assert {"log: header refused", "dir: recovered 2, end", "dir: recovered 3, torn"} <= verdicts


def test_new_cases() -> None:
    """Rules 5, 6: seeded runs; the verdicts are many, so the cases reach what they are made for."""
    verdicts = {targets.run(case) for seed in (1, 2) for case in itertools.islice(make.cases(seed), NEW_CASES)}
    assert len(verdicts) > 50
    assert {"log: end short", "log: corrupt table", "log: gap chain", "dir: recovered 1, end"} <= verdicts


def test_the_same_seed_makes_the_same_cases() -> None:
    """A seed that was reported can be run again."""
    once, again = ([case.pack() for case in itertools.islice(make.cases(7), 60)] for _ in range(2))
    assert once == again and len(set(once)) > 50


def test_the_oracle_can_fail() -> None:
    """A case whose claim is not the product's is found: here the twin is given other bytes than the product."""
    case = next(case for case in make.cases(3) if case.target == "log" and case.why == "sound")
    twin = targets.ref.walk
    try:
        targets.ref.walk = lambda data, *args, **more: twin(data[:-4096], *args, **more)
        with pytest.raises(AssertionError):
            targets.run(case)
    finally:
        targets.ref.walk = twin
