"""The table of the macro language's own functions: name -> (least arguments, most arguments, function).

A function gets the environment and its arguments as they stand in the text, and expands those it needs: so `%if`
leaves the other branch alone and `%protect` its text. "" and "0" are false, anything else is true; a comparison says 1
or nothing. Loops have no limit of their own: each call is a step of the machine (evaluator.py).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from marsx.admin.macro import numbers
from marsx.admin.macro.evaluator import DEPTH_MAX, SIZE_MAX, Env, Function, Functions, Leave, LimitError
from marsx.admin.macro.numbers import Number, is_true, number, whole, write
from marsx.base.errors import MarsError, UsageError
from marsx.base.text import printable

Args = tuple[str, ...]
MANY = 1000
MASK = (1 << 64) - 1
_NAME = re.compile(r"[A-Za-z0-9_][-A-Za-z0-9_]{0,62}", re.ASCII)
_FORMAT = r"%(?:(%)|([-+ 0#]{0,5})([0-9]{0,3})(?:\.([0-9]{1,3}))?([diousxXeEfgGcb]))"


def _expand(env: Env, args: Args, nr: int, default: str = "") -> str:
    return (env.expand(args[nr]) or default) if nr < len(args) else default


def _number(env: Env, args: Args, nr: int, default: Number = 0) -> Number:
    text = _expand(env, args, nr)
    return number(text) if text else default


def _said(value: object) -> str:
    return "1" if value else ""


# Variables


def variable(env: Env, args: Args) -> str:
    """`%{x}`, `%{++}{x}`, `%{x}{++}`, `%{x}{DELIM}{INDEX}`."""
    name = env.expand(args[0])
    second = _expand(env, args, 1)
    step = {"++": 1, "--": -1}
    if name in step and second:
        return _set(env, second, write(numbers.bounded(number(env.variables.get(second, "")) + step[name])))
    value = env.variables.get(name, "")
    if second in step:
        _set(env, name, write(numbers.bounded(number(value) + step[second])))
    elif len(args) > 1:
        fields = value.split(second) if second else [value]
        index = _expand(env, args, 2)
        place = -1 if index in ("", "*") else whole(number(index))
        return fields[place] if -len(fields) <= place < len(fields) else ""
    return value


def _set(env: Env, name: str, value: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name[:80]}' is no name of a variable", "letters, digits, - and _, at most 63")
    if name not in env.variables and len(env.variables) >= MANY:
        env.fail(f"more than {MANY} variables")
    if len(value) > SIZE_MAX:
        env.fail(f"a variable of more than {SIZE_MAX} characters")
    env.variables[name] = value
    return value


def let(env: Env, args: Args) -> str:
    """`%let{x}{text}`"""
    _set(env, env.expand(args[0]), env.expand(args[1]))
    return ""


def append(env: Env, args: Args) -> str:
    """`%append{x}{text}`"""
    name = env.expand(args[0])
    _set(env, name, env.variables.get(name, "") + env.expand(args[1]))
    return ""


def dump_vars(env: Env, args: Args) -> str:
    """All variables, one a line."""
    return "".join(f"{name}={value}\n" for name, value in sorted(env.variables.items()))


# Numbers and texts


def _folded(fold: Callable[[Number, Number], Number]) -> Function:
    def function(env: Env, args: Args) -> str:
        result = number(env.expand(args[0]))
        for arg in args[1:]:
            try:
                result = numbers.bounded(fold(result, number(env.expand(arg))))
            except ZeroDivisionError:
                raise UsageError("macro: division by zero") from None
            except OverflowError:
                result = float("inf")
        return write(result)

    return function


def _bits(fold: Callable[[int, int], int]) -> Callable[[Number, Number], Number]:
    return lambda a, b: fold(whole(a) & MASK, whole(b) & MASK) & MASK


def _shift(a: int, b: int, left: bool) -> int:
    return 0 if b > 63 else a << b if left else a >> b


def _remainder(a: Number, b: Number) -> Number:
    return whole(a) % whole(b)


def _compared(compare: Callable[[Number, Number], bool]) -> Function:
    return lambda env, args: _said(compare(number(env.expand(args[0])), number(env.expand(args[1]))))


def _ordered(compare: Callable[[str, str], bool]) -> Function:
    return lambda env, args: _said(compare(env.expand(args[0]), env.expand(args[1])))


def logic(env: Env, args: Args, stop_at: bool) -> str:
    """The first argument that decides, else the last; what is behind it is not evaluated."""
    value = ""
    for arg in args:
        value = env.expand(arg)
        if is_true(value) is stop_at:
            break
    return value


def subst(env: Env, args: Args) -> str:
    """`%subst{text}{re}{replacement}{options}`; options i, g, and what re calls s, m, x."""
    text, pattern, replacement, options = (_expand(env, args, nr) for nr in range(4))
    found = _pattern(pattern, options)
    with _limited(env):
        parts, place, size = [], 0, 0
        for match in found.finditer(text):
            parts += [text[place : match.start()], _filled(replacement, match)]
            size += len(parts[-1])
            place = match.end()
            if size > SIZE_MAX:
                env.fail(f"a text of more than {SIZE_MAX} characters")
            if "g" not in options:
                break
    return "".join(parts) + text[place:]


def match_(env: Env, args: Args) -> str:
    """`%match{text}{re}{options}`: does it occur in the text?"""
    text, pattern, options = (_expand(env, args, nr) for nr in range(3))
    found = _pattern(pattern, options)
    with _limited(env):
        return _said(found.search(text))


def _pattern(pattern: str, options: str) -> re.Pattern[str]:
    flags = {"i": re.IGNORECASE, "s": re.DOTALL, "m": re.MULTILINE, "x": re.VERBOSE}
    chosen = 0
    for option in options:
        chosen |= flags.get(option, 0)
    try:
        return re.compile(pattern[:10_000], chosen)
    except (re.error, OverflowError, RecursionError) as exc:
        shown = f"'{printable(pattern, 80)}' is no regular expression: {printable(str(exc), 80)}"
        raise UsageError(f"macro: {shown}") from exc


def _filled(replacement: str, match: re.Match[str]) -> str:
    """$1 or \\1 and $& in the replacement."""

    def part(name: re.Match[str]) -> str:
        word = name[1]
        nr = 0 if word == "&" else int(word)
        return (match[nr] or "") if nr <= (match.re.groups) else ""

    return re.sub(r"[$\\]([0-9]|&)", part, replacement)


@contextmanager
def _limited(env: Env) -> Iterator[None]:
    """A regular expression that does not end is ended by a signal at the deadline."""

    import signal

    def over(*_: object) -> None:
        raise LimitError("a regular expression of the macro takes too long", "make it simpler, or see --timeout")

    left = max(0.001, min(env.machine.left(), 10.0))
    old = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def sprintf(env: Env, args: Args) -> str:
    """`%sprintf{format}{...}` with the conversions of C, the format as it stands."""
    values = [env.expand(arg) for arg in args[1:]]

    def one(match: re.Match[str]) -> str:
        percent, flags, width, digits, kind = match.groups()
        if percent:
            return "%"
        value = values.pop(0) if values else ""
        spec = f"%{flags}{width}" + (f".{digits}" if digits else "")
        if kind == "s":
            return f"{spec}s" % value
        if kind == "c":
            code = whole(number(value))
            return f"{spec}s" % (chr(code) if 0 < code < 0xD800 else "")
        if kind == "b":
            return f"{spec}s" % format(whole(number(value)) & MASK, "b")
        if kind in "diouxX":
            return f"{spec}{'d' if kind in 'iu' else kind}" % (whole(number(value)) & MASK if kind in "oxX" else whole(
                number(value)))
        return f"{spec}{kind}" % number(value)

    return re.sub(_FORMAT, one, args[0])


def _human(env: Env, args: Args, older: bool) -> str:
    """`{unit}{delim}{unitdelim}{n}...`"""
    unit, delim, unit_delim = (_expand(env, args, nr) for nr in range(3))
    return numbers.amounts([number(env.expand(arg)) for arg in args[3:]], unit, delim, unit_delim, older)


def progress(env: Env, args: Args) -> str:
    """`%progress{width}{low}{middle}{high}`"""
    width, low, middle, high = (number(env.expand(arg)) for arg in args)
    return numbers.progress(whole(width), low, middle, high)


# Control


def branch(env: Env, args: Args, wanted: bool) -> str:
    """`{condition}{text}` pairs, and perhaps a last text for none of them."""
    for nr in range(0, len(args) - 1, 2):
        if is_true(env.expand(args[nr])) is wanted:
            return env.expand(args[nr + 1])
    return env.expand(args[-1]) if len(args) % 2 else ""


def _round(env: Env, body: str) -> tuple[str, bool]:
    """One round of a loop: its text, and whether it goes on."""
    env.machine.step()
    try:
        return env.expand(body), True
    except Leave as leave:
        if leave.what not in ("next", "last"):
            raise
        return leave.text, leave.what == "next"


def _loop(env: Env, body: str, rounds: Iterator[object]) -> str:
    parts: list[str] = []
    size = 0
    for _ in rounds:
        try:
            text, goes_on = _round(env, body)
        except Leave as leave:
            leave.text = "".join(parts) + leave.text
            raise
        parts.append(text)
        size += len(text)
        if size > SIZE_MAX:
            env.fail(f"a loop makes a text of more than {SIZE_MAX} characters")
        if not goes_on:
            break
    return "".join(parts)


def while_(env: Env, args: Args, wanted: bool) -> str:
    """`{condition}{body}`"""

    def rounds() -> Iterator[object]:
        while is_true(env.expand(args[0])) is wanted:
            yield None

    return _loop(env, args[1], rounds())


def for_(env: Env, args: Args) -> str:
    """`{start}{condition}{step}{body}`"""

    def rounds() -> Iterator[object]:
        env.expand(args[0])
        while is_true(env.expand(args[1])):
            yield None
            env.expand(args[2])

    return _loop(env, args[3], rounds())


def _for_each(env: Env, name: str, words: list[str], body: str) -> str:
    def rounds() -> Iterator[object]:
        for word in words:
            _set(env, name, word)
            yield None

    return _loop(env, body, rounds())


def foreach(env: Env, args: Args) -> str:
    """`{variable}{text}{delimiter}{body}`; an empty delimiter means a newline or a comma."""
    text, delim = env.expand(args[1]), env.expand(args[2])
    words = text.split(delim) if delim else re.split(r"[\n,]", text)
    return _for_each(env, env.expand(args[0]), [word for word in words if word], args[3])


def foreach_glob(env: Env, args: Args) -> str:
    """`{variable}{glob}{body}`: each entry of the tree that fits."""
    return _for_each(env, env.expand(args[0]), env.machine.source.glob(env.expand(args[1])), args[2])


def get_glob(env: Env, args: Args) -> str:
    """`{glob}{variable}{delimiter}`: the entries that fit, also into the variable."""
    text = _expand(env, args, 2, "\n").join(env.machine.source.glob(env.expand(args[0])))
    name = _expand(env, args, 1)
    return _set(env, name, text) if name else text


def evaluate(env: Env, args: Args) -> str:
    """`%eval{n}{text}`: expand n times more."""
    times = whole(number(env.expand(args[0])))
    text = env.expand(args[1])
    for _ in range(max(0, min(times, DEPTH_MAX))):
        text = env.expand(text)
    return text


def eval_down(env: Env, args: Args) -> str:
    """`%eval-down{text}`: expand until nothing changes any more."""
    text = args[0]
    while True:
        env.machine.step()
        result = env.expand(text)
        if result == text:
            return result
        text = result


def tmp(env: Env, args: Args) -> str:
    """`%tmp{text}`: what happens to variables in it is forgotten."""
    return Env(env.machine, dict(env.variables)).expand(args[0])


def call(env: Env, args: Args, own_scope: bool) -> str:
    """`%include{macro}{arg}...` in the same variables, `%call` in a copy of them."""
    words = [env.expand(arg) for arg in args]
    return env.include(words[0], words[1:], own_scope)


def _leave(what: str) -> Function:
    def function(env: Env, args: Args) -> str:
        raise Leave(what)

    return function


def warn(env: Env, args: Args) -> str:
    """To the terminal."""
    env.machine.source.note(env.expand(args[0]))
    return ""


def die(env: Env, args: Args) -> str:
    """End with an error."""
    raise MarsError(printable(_expand(env, args, 0, "the macro ended itself (%die)")))


# The world


def sleep(env: Env, args: Args) -> str:
    """At most until --timeout."""
    wanted = _number(env, args, 0)
    env.machine.source.sleep(min(max(0.0, float(wanted)) if wanted == wanted else 0.0, env.machine.left()))
    env.machine.left()
    return ""


def wait(env: Env, args: Args) -> str:
    """Until the argument, evaluated at each change of the tree, is true."""
    env.machine.source.wait(env.resource, lambda: is_true(env.expand(args[0])))
    return ""


def wait_resource(env: Env, args: Args) -> str:
    """`%wait-resource{condition}` as the command."""
    env.machine.source.wait(env.resource, env.expand(args[0]))
    return ""


def set_link(env: Env, args: Args) -> str:
    """`%setlink{value}{path}`"""
    env.machine.source.set_link(env.expand(args[1]), env.expand(args[0]))
    return ""


def _stamp(ns: int) -> str:
    return f"{ns // 10**9}.{ns % 10**9:09d}"


_TODO = {"fetch": "todo-fetch", "connect": "todo-fetch", "allow-replay": "todo-replay"}


def does(env: Env, args: Args) -> str:
    """`%does{attach}`: is-attach; `%todo{...}` likewise."""
    return env.value("is-" + env.expand(args[0]), [])


def todo(env: Env, args: Args) -> str:
    """`%todo{attach}`"""
    word = env.expand(args[0])
    return env.value(_TODO.get(word, "todo-" + word), [])


_FOLDS: dict[str, Callable[[Number, Number], Number]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "%": _remainder, "min": min,
    "max": max, "&": _bits(operator.and_), "|": _bits(operator.or_), "^": _bits(operator.xor),
    "<<": _bits(lambda a, b: _shift(a, b, True)), ">>": _bits(lambda a, b: _shift(a, b, False)),
}  # fmt: skip
_COMPARED: dict[str, Callable[[Number, Number], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_ORDERED: dict[str, Callable[[str, str], bool]] = {
    name: getattr(operator, name) for name in ("lt", "gt", "le", "ge", "eq", "ne")
}

FUNCTIONS: Functions = {
    "": (1, 3, variable),
    "let": (2, 2, let), "set": (2, 2, let), "append": (2, 2, append), "dump-vars": (0, 1, dump_vars),
    **{name: (1, MANY, _folded(fold)) for name, fold in _FOLDS.items()},
    **{name: (2, 2, _compared(compare)) for name, compare in _COMPARED.items()},
    **{name: (2, 2, _ordered(compare)) for name, compare in _ORDERED.items()},
    **{name: (1, MANY, lambda env, args: logic(env, args, False)) for name in ("&&", "and")},
    **{name: (1, MANY, lambda env, args: logic(env, args, True)) for name in ("||", "or")},
    **{name: (1, 1, lambda env, args: _said(not is_true(env.expand(args[0])))) for name in ("!", "not")},
    "~": (1, 1, lambda env, args: write(numbers.bounded(~whole(number(env.expand(args[0]))) & MASK))),
    "toupper": (1, 1, lambda env, args: env.expand(args[0]).upper()),
    "tolower": (1, 1, lambda env, args: env.expand(args[0]).lower()),
    "length": (1, 1, lambda env, args: str(len(env.expand(args[0])))),
    "subst": (3, 4, subst), "match": (2, 3, match_), "sprintf": (1, MANY, sprintf),
    "human-number": (4, 4, lambda env, args: _human(env, args, False)),
    "human-numbers": (4, MANY, lambda env, args: _human(env, args, False)),
    "human-numbers-1and1": (4, MANY, lambda env, args: _human(env, args, True)),
    "human-rate": (1, 1, lambda env, args: numbers.rate(number(env.expand(args[0])))),
    "human-seconds": (1, 1, lambda env, args: numbers.seconds(_number(env, args, 0, -1))),
    "progress": (4, 4, progress),
    **{name: (2, MANY, lambda env, args: branch(env, args, True)) for name in ("if", "elsif")},
    **{name: (2, MANY, lambda env, args: branch(env, args, False)) for name in ("unless", "elsunless")},
    "while": (2, 2, lambda env, args: while_(env, args, True)),
    "until": (2, 2, lambda env, args: while_(env, args, False)),
    "for": (4, 4, for_), "foreach": (4, 4, foreach), "foreach-glob": (3, 3, foreach_glob), "get-glob": (1, 3, get_glob),
    "protect": (1, 1, lambda env, args: args[0]),
    "eval": (2, 2, evaluate), "eval-down": (1, 1, eval_down), "tmp": (1, 1, tmp),
    "include": (1, MANY, lambda env, args: call(env, args, False)),
    "call": (1, MANY, lambda env, args: call(env, args, True)),
    "callstack": (0, 1, lambda env, args: ",".join(env.machine.stack)),
    "warn": (1, 1, warn), "die": (0, 1, die),
    **{what: (0, 1, _leave(what)) for what in ("next", "last", "return", "stop-eval", "abort")},
    "sleep": (1, 1, sleep), "timeout": (1, 1, sleep), "wait": (1, 1, wait), "wait-resource": (1, 1, wait_resource),
    "time": (0, 1, lambda env, args: _stamp(env.machine.source.lamport_ns())),
    "real-time": (0, 1, lambda env, args: _stamp(env.machine.source.real_ns())),
    "readlink": (1, 1, lambda env, args: env.machine.source.link(env.expand(args[0]))),
    "setlink": (2, 2, set_link), "does": (1, 1, does), "todo": (1, 1, todo),
    "get-msg": (1, 2, lambda env, args: env.value("message", [env.expand(arg) for arg in args])),
}  # fmt: skip
