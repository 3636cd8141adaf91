"""verify: what is asked of marsd, what is printed where, the exit status."""

from __future__ import annotations

import sys

import pytest

from marsx.admin.verify import Shown, amount, clock
from marsx.base.errors import MarsError, PreconditionError
from tests.unit.admin.small_tree import Admin

EQUAL = {"size": 1 << 20, "differs": 0, "repaired": 0}


def test_what_is_asked(adm: Admin) -> None:
    """All options go to marsd as they are."""
    adm.control.answers["verify"] = EQUAL
    code, out, err = adm("verify data --host=a --repair --rate=500 --continuous")
    assert (code, out) == (0, "") and "1.0 MiB compared, all equal" in err
    assert adm.control.asked == [{"cmd": "verify", "resource": "data", "host": "a", "repair": True,
                                  "continuous": True, "rate_kb": 500}]


@pytest.mark.parametrize(
    ("result", "status", "text"),
    [
        (EQUAL, 0, "all equal"),
        ({**EQUAL, "differs": 8192}, 1, "8192 bytes differ\n  hint: marsadm verify data --repair"),
        ({**EQUAL, "differs": 8192, "repaired": 8192}, 1, "8192 of them are repaired\n"),
    ],
)
def test_exit_status_of_a_result(adm: Admin, result: dict[str, int], status: int, text: str) -> None:
    """1 means that there was a difference, and nothing else."""
    adm.control.answers["verify"] = result
    code, out, err = adm("verify data")
    assert (code, out) == (status, "") and text in err


def test_an_error_is_no_difference(adm: Admin) -> None:
    """Exit status 1 is a difference that was found; a verify that broke off has another one."""
    adm.control.answers["verify"] = MarsError("the line is gone")
    assert adm("verify data")[0] == 11
    adm.control.answers["verify"] = PreconditionError("not consistent")
    assert adm("verify data")[0] == 3
    assert adm("verify data --rate=x")[0] == 2 and adm("verify nosuch")[0] == 4 and adm("verify all")[0] == 2
    assert adm("verify data --host=")[0] in (0, 2, 3)


def test_ranges_and_progress(
    adm: Admin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranges on stdout, one a line; progress on a terminal only, with rate and remaining time."""
    from marsx.admin.cli import Options
    from marsx.admin.context import Context

    now = [0.0]
    ctx = Context(adm.tree.paths, "b", Options(), monotonic=lambda: now[0])
    quiet = Shown(ctx, "data")
    quiet({"done": 5, "size": 10, "differs": 0})
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = Shown(ctx, "data")
    shown({"done": 0, "size": 400 << 20, "differs": 0})
    now[0] = 10.0
    shown({"done": 100 << 20, "size": 400 << 20, "differs": 4096})
    shown({"ranges": [[4096, 8192], [1 << 30, 4096]]})
    shown({"round": {"size": 400 << 20, "differs": 4096}})
    out, err = capsys.readouterr()
    assert out == f"4096 8192\n{1 << 30} 4096\n"
    assert "25.00 % of 400.0 MiB, 10.5 MB/s, 0:00:30 left, 4.0 KiB differ" in err
    assert "400.0 MiB compared, 4096 bytes differ" in err


def test_words() -> None:
    """Sizes and times for people."""
    assert [amount(n) for n in (5, 2048, 5 << 40)] == ["5 bytes", "2.0 KiB", "5.0 TiB"]
    assert clock(3 * 3600 + 62) == "3:01:02"
