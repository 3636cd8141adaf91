"""The macro language: each function by a row, the limits, and that no text breaks it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsx.admin.macro import evaluator
from marsx.admin.macro.evaluator import Machine
from marsx.admin.macro.functions import FUNCTIONS
from marsx.admin.macro.numbers import progress
from marsx.admin.macro.parser import without_comments
from marsx.base.errors import MarsError, TimeoutExpired, UsageError


class Clock:
    """Time that goes on only by sleeping, or by `tick` at each look."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


class Bench:
    """A source of few values: what a macro is tried on."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.links = {"uuid": "u1", "ips/ip-a": "10.0.0.1", "ips/ip-b": "10.0.0.2"}
        self.macros = {
            "twice": "%{1}%{1}", "keeps": "%let{x}{new}%{x}", "early": "a%return{}b", "self": "%include{self}",
            "noargs": "<%{1}>", "named": "%{0} in %callstack{}",
        }  # fmt: skip
        self.notes: list[str] = []

    def value(self, resource: str, name: str, args: list[str]) -> str | None:
        values = {"is-attach": "1", "is-sync": "0", "todo-replay": "1", "todo-fetch": "0", "echo": ",".join(args)}
        return f"[{args[0]}]" if name == "message" else values.get(name)

    def macro(self, name: str) -> str | None:
        return self.macros.get(name)

    def link(self, path: str) -> str:
        return self.links.get(path, "")

    def glob(self, pattern: str) -> list[str]:
        return sorted(rel for rel in self.links if rel.startswith("ips/")) if pattern == "ips/*" else []

    def set_link(self, path: str, value: str) -> None:
        self.links[path] = value

    def wait(self, resource: str, condition: Callable[[], bool] | str) -> None:
        if condition != "is-on" and not (callable(condition) and condition()):
            raise TimeoutExpired(f"waited for {condition}")

    def sleep(self, seconds: float) -> None:
        self.clock.now += seconds

    def lamport_ns(self) -> int:
        return 2_000_000_003

    def real_ns(self) -> int:
        return 1_000_000_000

    def note(self, text: str) -> None:
        self.notes.append(text)


def run(text: str, tick: float = 0.0, bench: Bench | None = None) -> str:
    """What a text evaluates to."""
    clock = Clock(tick)
    machine = Machine(bench or Bench(clock), FUNCTIONS, clock, 600.0)
    return machine.run(text, {"x": "5", "csv": "a,b,c", "res": "data"})


ROWS = [
    # text itself
    ("", ""), ("plain 100% text", "plain 100% text"), (r"a\tb\nc\\d\{\}\%{x}", "a\tb\nc\\d{}%{x}"), ("{a}", "{a}"),
    ("50%", "50%"), ("%%{7}{4}", "3"), ("%nofunction", "%nofunction"), ("}", "}"), ("\\", "\\"),
    # variables
    ("%{x}", "5"), ("%{nothing}", ""), ("%{++}{x}%{x}", "66"), ("%{x}{++}%{x}", "56"), ("%{--}{x}", "4"),
    ("%{csv}{,}{1}", "b"), ("%{csv}{,}{*}", "c"), ("%{csv}{,}{}", "c"), ("%{csv}{,}{9}", ""), ("%{csv}{,}{-3}", "a"),
    ("%let{y}{%{x}1}%{y}", "51"), ("%set{y}{2}%append{y}{3}%{y}", "23"), ("%tmp{%let{x}{9}%{x}}%{x}", "95"),
    ("%dump-vars{}", "csv=a,b,c\nres=data\nx=5\n"), ("%{%{one}x}", "5"),
    # numbers
    ("%+{1}{2}{3}", "6"), ("%-{1}{2}", "-1"), ("%*{3}{4}", "12"), ("%/{7}{2}", "3.5"), ("%/{8}{2}", "4"),
    ("%min{3}{1}{2}", "1"), ("%max{3}{1}{2}", "3"), ("%&{12}{10}", "8"), ("%|{12}{10}", "14"), ("%^{12}{10}", "6"),
    ("%<<{1}{10}", "1024"), ("%>>{1024}{3}", "128"), ("%<<{1}{99}", "0"), ("%~{0}", "1.84467440737096e+19"),
    ("%+{x12}{1}", "1"), ("%+{12x}{1}", "13"), ("%+{1e3}{0}", "1000"), ("%*{1e308}{10}", "inf"),
    ("%+{9223372036854775807}{1}", "9.22337203685478e+18"), ("%*{-1}{.5}", "-0.5"), ("%%{1e400}{7}", "0"),
    # comparing
    ("%<{2}{10}", "1"), ("%<{10}{2}", ""), ("%lt{2}{10}", ""), ("%=={1.0}{1}", "1"), ("%!={1}{1}", ""),
    ("%<={1}{1}%>={1}{1}%>{1}{1}", "11"), ("%eq{a}{a}%ne{a}{a}%gt{b}{a}%le{b}{a}%ge{b}{b}", "111"),
    ("%match{abc}{B}", ""), ("%match{abc}{B}{i}", "1"), ("%match{a b}{^a\\\\s}", "1"),
    # logic
    ("%&&{1}{2}", "2"), ("%and{0}{%die{no}}", "0"), ("%||{}{3}{%die{no}}", "3"), ("%or{}{0}", "0"), ("%!{0}", "1"),
    ("%not{x}", ""), ("%not{00}", ""),
    # texts
    ("%toupper{aß}%tolower{AB}%length{abc}", "ASSab3"), ("%subst{aXbX}{x}{y}{i}", "aybX"),
    ("%subst{a-b-c}{([a-c])-}{<$1>}{g}", "<a><b>c"), ("%subst{abc}{b}{[$&]$7}", "a[b]c"),
    ("%subst{aa}{}{-}{g}", "-a-a-"),
    ("%sprintf{%05.1f|%-4s|%x|%%|%d|%c|%b}{3.14159}{ab}{255}{7}{65}{5}", "003.1|ab  |ff|%|7|A|101"),
    ("%sprintf{%s%s}{%{x}}", "5"), ("%sprintf{%s {}}{a}", "a {}"), ("%sprintf{%q %n}{a}", "%q %n"),
    # amounts
    ("%human-number{}{}{}{0}", "0 B"), ("%human-number{}{}{}{200961652}", "191.652 MiB"),
    ("%human-number{}{}{}{268435456000}", "250.000 GiB"), ("%human-numbers{}{}{}{1}{2097152}", "0/2 MiB"),
    ("%human-numbers{}{:}{ }{1024}{2048}", "1:2 KiB"), ("%human-numbers{k}{}{}{1500}", "1.500 KB"),
    ("%human-numbers{K}{}{}{1536}", "1.500 KiB"), ("%human-number{B}{}{}{1048576}", "1048576 B"),
    ("%human-numbers-1and1{}{}{}{268435456000}", "256000 MiB"), ("%human-number{}{}{}{1023}", "1023 B"),
    ("%human-number{}{}{}{10716445409280}", "9980.468 GiB"), ("%human-number{}{}{}{11000000000000}", "10.004 TiB"),
    ("%human-rate{1228800}", "1.17 MiB"), ("%human-seconds{49}", "00:00:49"), ("%human-seconds{360061}", "100:01:01"),
    ("%human-seconds{}%human-seconds{-1}", "--:--:----:--:--"), ("%progress{20}{0}{0}{100}", "[>.................]"),
    ("%progress{20}{50}{75}{100}", "[=========>:::.....]"), ("%progress{20}{100}{100}{100}", "[==================]"),
    # control
    ("%if{1}{a}{b}%if{0}{a}{b}%if{}{a}", "ab"), ("%if{0}{a}{1}{b}{c}", "b"), ("%elsif{0}{a}{0}{b}{c}", "c"),
    ("%unless{0}{a}{b}%elsunless{1}{a}{0}{b}", "ab"), ("%while{%<{%{x}}{8}}{%{x}{++}}", "567"),
    ("%until{%>={%{x}}{7}}{%{x}{++}}", "56"), ("%for{%let{i}{0}}{%<{%{i}}{3}}{%{++}{i}}{%{i}}", "012"),
    ("%foreach{v}{%{csv}}{,}{<%{v}>}", "<a><b><c>"), ("%foreach{v}{a\\nb}{}{%{v};}", "a;b;"),
    ("%foreach{v}{%{csv}}{,}{%if{%eq{%{v}}{b}}{x%next{}y}%{v}}", "axc"),
    ("%foreach{v}{%{csv}}{,}{%if{%eq{%{v}}{b}}{x%last{}y}%{v}}", "ax"), ("a%stop-eval{}b", "a"),
    ("1%include{early}2", "1a2"), ("1%foreach{v}{%{csv}}{,}{%{v}%stop-eval{}}2", "1a"),
    ("%protect{%{x}}", "%{x}"), ("%eval{1}{%protect{%{x}}}", "5"), ("%eval{0}{%{x}}", "5"),
    ("%let{y}{%protect{%{x}}}%eval-down{%{y}}", "5"),
    # macros and values
    ("%include{twice}{ab}", "abab"), ("%twice{ab}", "abab"), ("%include{noargs}", "<>"), ("%call{keeps}%{x}", "new5"),
    ("%include{keeps}%{x}", "newnew"), ("%include{named}", "named in ,named"), ("%is-attach{}%is-sync{}", "10"),
    ("%echo{a}{%{x}}{}", "a,5"), ("%does{attach}%todo{allow-replay}%todo{fetch}", "110"),
    ("%get-msg{err-x}", "[err-x]"),
    # the world
    ("%readlink{uuid}%readlink{none}", "u1"), ("%setlink{v}{userspace/k}%readlink{userspace/k}", "v"),
    ("%foreach-glob{v}{ips/*}{%{v};}", "ips/ip-a;ips/ip-b;"), ("%get-glob{ips/*}{}{,}", "ips/ip-a,ips/ip-b"),
    ("%get-glob{ips/*}{names}%{names}", "ips/ip-a\nips/ip-bips/ip-a\nips/ip-b"), ("%time{}", "2.000000003"),
    ("%real-time{}", "1.000000000"), ("%sleep{3}%timeout{4}done", "done"), ("%wait{1}%wait-resource{is-on}", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "result"), ROWS, ids=[text for text, _ in ROWS])
def test_function(text: str, result: str) -> None:
    """One row, one thing."""
    assert run(text) == result


def test_every_function_has_a_row() -> None:
    """No function without a row above, or a test below."""
    shown = " ".join(text for text, _ in ROWS)
    below = {"warn", "die", "abort", "callstack", "return", ""}  # the last two: in macros of Bench
    assert [name for name in FUNCTIONS if name not in below and f"%{name}{{" not in shown] == []


def test_warn_and_die() -> None:
    """To the terminal, and as an error."""
    bench = Bench(Clock())
    assert run("a%warn{b%{x}}c", bench=bench) == "ac" and bench.notes == ["b5"]
    with pytest.raises(MarsError, match="^no 5$"):
        run("%die{no %{x}}")
    with pytest.raises(MarsError, match="abort"):
        run("a%abort{}b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("%{a", "not closed"), ("%nothing{}", "no macro or value 'nothing'"), ("%include{gone}", "no macro or value"),
        ("%include{self}", "more than 60 deep"), ("%while{1}{}", "more than 2000000 steps"),
        ("%let{a}{xxxxxxxxxxxxxxxx}%while{1}{%let{a}{%{a}%{a}}}", "more than 1048576 characters"),
        ("%while{1}{0123456789012345678901234567890123456789}", "more than 1048576 characters"),
        ("%if{1}", "too few"), ("%not{1}{2}", "too many"), ("%/{1}{0}", "division by zero"), ("%%{1}{0}", "division"),
        ("%subst{a}{(}{}", "no regular expression"), ("%let{a b}{}", "no name of a variable"),
        ("%human-number{furlong}{}{}{1}", "no unit"),
        ("%for{%let{i}{0}}{1}{}{%let{v%{i}}{}%{++}{i}}", "1000 variables"),
        ("x" * 65537, "longer than 65536"),
    ],
)  # fmt: skip
def test_limit(text: str, said: str) -> None:
    """What goes too far is named, and ends."""
    with pytest.raises(UsageError, match=said):
        run(text)


def test_deep_nesting_ends() -> None:
    """Thousands of braces within each other are an error, not a crash."""
    with pytest.raises(UsageError, match="nested too deeply"):
        run("%not{" * 5000 + "1" + "}" * 5000)


def test_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """--timeout ends a loop and a sleep; a signal ends a regular expression."""
    with pytest.raises(TimeoutExpired, match="within 600 s"):
        run("%while{1}{}", tick=1.0)
    with pytest.raises(TimeoutExpired):
        run("%sleep{601}")
    with pytest.raises(TimeoutExpired):
        run("%while{1}{%sleep{100}}")
    monkeypatch.setattr(evaluator.Machine, "left", lambda self: 0.1)
    with pytest.raises(UsageError, match="takes too long"):
        run("%match{aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}{^(a+)+$b}")


def test_comments() -> None:
    """What a NAME.tpl may have beside its text."""
    text = "# one\n  // two\na /* three\nfour */b \\\n  c # no // comment\n#end"
    assert without_comments(text) == "a b   c # no // comment"
    assert without_comments("a\n\n") == "a\n" and without_comments("") == ""


WORDS = st.sampled_from([
    *(f"%{name}{{" for name in FUNCTIONS if name not in ("sleep", "timeout")), "%twice{", "%self{", "%early{",
    "}{", "}", "{", "%",
    "\\", "\n", "x", "0", "1", "-3", "1e99", "9" * 30, ".", "a+", "(", "%{x}", "%s", "%999d", "++", "--", "*", "K",
    "\x00", "é",
])  # fmt: skip


@settings(max_examples=700, deadline=None)
@given(st.one_of(st.lists(WORDS, max_size=40).map("".join), st.text(max_size=60)))
def test_no_text_breaks_it(text: str) -> None:
    """A text or a MarsError, whatever comes in, and never more than a text may have."""
    with contextlib.suppress(MarsError):
        assert len(run(text, tick=0.5)) <= 2 * evaluator.SIZE_MAX


@given(st.integers(-5, 200), st.floats(), st.floats(), st.floats())
def test_bar(width: int, low: float, middle: float, high: float) -> None:
    """Never longer than its width, never more than one shorter, whatever the numbers."""
    bar = progress(width, low, middle, high)
    assert max(width, 3) - 1 <= len(bar) <= max(width, 3) and (bar[0], bar[-1]) == ("[", "]")
