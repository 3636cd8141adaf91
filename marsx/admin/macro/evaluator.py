"""Evaluates a macro text, within limits: steps, depth, size of a text, time.

`Machine` belongs to one `view` call: it counts what all macros of it have used together, and knows where macros and
values come from (`Source`). `Env` is what one macro sees: its variables. Whatever the text, the result is a text or a
MarsError.

Invariants
    every call of a function is one step, so every loop comes to STEPS_MAX or to --timeout
    no text that comes about is longer than SIZE_MAX; macros within macros at most DEPTH_MAX
    arguments are evaluated when a function asks for them, and only then
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, Protocol

from marsx.admin.macro.parser import Call, parse
from marsx.base.errors import MarsError, TimeoutExpired, UsageError

STEPS_MAX = 2_000_000
DEPTH_MAX = 60
SIZE_MAX = 1 << 20
_NOTHING = ("",)
LIMITS_HINT = "the limits stand in docs/views.md"


class LimitError(UsageError):
    """A macro used more than it may."""


class Source(Protocol):
    """What the language works on."""

    def value(self, resource: str, name: str, args: list[str]) -> str | None:
        """A value by its name, None if there is none."""
    def macro(self, name: str) -> str | None:
        """The text of a macro, None if there is none."""
    def link(self, path: str) -> str:
        """The value of an entry of the tree."""
    def glob(self, pattern: str) -> list[str]:
        """Names of the entries of the tree that fit."""
    def set_link(self, path: str, value: str) -> None:
        """Write an entry below userspace/."""
    def wait(self, resource: str, condition: Callable[[], bool] | str) -> None:
        """Return when it is true."""
    def sleep(self, seconds: float) -> None:
        """Pause."""
    def lamport_ns(self) -> int:
        """The Lamport time."""
    def real_ns(self) -> int:
        """The time."""
    def note(self, text: str) -> None:
        """Tell the person at the terminal."""


class Leave(Exception):
    """A jump out of what is being evaluated: next, last, return, stop-eval, abort; `text` is what came before."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what, self.text = what, ""


Function = Callable[["Env", tuple[str, ...]], str]
Functions = dict[str, tuple[int, int, Function]]
"""name -> (least arguments, most arguments, function)"""


class Machine:
    """The evaluation of one `view` call."""

    def __init__(self, source: Source, functions: Functions, clock: Callable[[], float], timeout: float) -> None:
        self.source, self.functions, self.clock = source, functions, clock
        self.deadline = clock() + timeout
        self._timeout = timeout
        self.stack: list[str] = []
        self._steps = 0

    def step(self) -> None:
        """One more call; LimitError or TimeoutExpired, looked at each 1024 of them, when that was too much."""
        self._steps += 1
        if not self._steps & 1023:
            self.left()
            if self._steps > STEPS_MAX:
                raise LimitError(f"the macro takes more than {STEPS_MAX} steps", f"does a loop end? {LIMITS_HINT}")

    def left(self) -> float:
        """Seconds until --timeout; TimeoutExpired when there are none."""
        left = self.deadline - self.clock()
        if left <= 0:
            raise TimeoutExpired(f"the macro has not ended within {self._timeout:g} s", "does a loop end?")
        return left

    def run(self, text: str, variables: dict[str, str], name: str = "") -> str:
        """The text of one macro with these variables, from outside."""
        env = Env(self, dict(variables))
        try:
            return env.macro_text(name, text)
        except Leave as leave:
            if leave.what == "abort":
                raise MarsError("the macro ended itself (%abort)") from leave
            return leave.text
        except RecursionError:
            self.stack.clear()
            raise LimitError("the macro is nested too deeply", LIMITS_HINT) from None


class Env:
    """What one macro sees."""

    __slots__ = ("machine", "variables")

    def __init__(self, machine: Machine, variables: dict[str, str]) -> None:
        self.machine, self.variables = machine, variables

    @property
    def resource(self) -> str:
        """The resource that is looked at."""
        return self.variables.get("res", "")

    def expand(self, text: str) -> str:
        """The text with everything in it evaluated."""
        nodes = parse(text)
        if len(nodes) == 1:
            node = nodes[0]
            return node if type(node) is str else self._call(node)  # type: ignore[arg-type]
        parts: list[str] = []
        size = 0
        try:
            for node in nodes:
                part = node if type(node) is str else self._call(node)  # type: ignore[arg-type]
                size += len(part)
                if size > SIZE_MAX:
                    raise LimitError(f"the macro makes a text of more than {SIZE_MAX} characters", LIMITS_HINT)
                parts.append(part)
        except Leave as leave:
            leave.text = "".join(parts)[:SIZE_MAX] + leave.text
            raise
        return "".join(parts)

    def _call(self, node: Call) -> str:
        self.machine.step()
        found = self.machine.functions.get(node.name)
        if found is None:
            return self.value(node.name, [] if node.args == _NOTHING else [self.expand(arg) for arg in node.args])
        least, most, function = found
        if not least <= len(node.args) <= most:
            self.fail(f"%{node.name}: {len(node.args)} arguments are too {'few' if len(node.args) < least else 'many'}")
        return function(self, node.args)

    def value(self, name: str, args: list[str]) -> str:
        """A value, or else the macro of that name."""
        while args and not args[-1]:
            args.pop()
        found = self.machine.source.value(self.resource, name, args)
        return self.include(name, args) if found is None else found

    def include(self, name: str, args: list[str], own_scope: bool = False) -> str:
        """The macro NAME.tpl or built-in macro NAME, else the value of that name."""
        text = self.machine.source.macro(name)
        if text is None:
            found = self.machine.source.value(self.resource, name, args)
            if found is None:
                raise UsageError(f"there is no macro or value '{name[:80]}'", "marsadm view-names lists them")
            return found
        own = {"0": name}
        own.update((str(nr), arg) for nr, arg in enumerate(args, 1))
        env = Env(self.machine, dict(self.variables)) if own_scope else self
        before = [(key, env.variables.get(key)) for key in own]
        env.variables.update(own)
        try:
            return env.macro_text(name, text)
        except Leave as leave:
            if leave.what != "return":
                raise
            return leave.text
        finally:
            for key, value in before:
                if value is None:
                    env.variables.pop(key, None)
                else:
                    env.variables[key] = value

    def macro_text(self, name: str, text: str) -> str:
        """Evaluate the text of a macro, one deeper."""
        stack = self.machine.stack
        if len(stack) >= DEPTH_MAX:
            self.fail(f"macros call each other more than {DEPTH_MAX} deep")
        stack.append(name)
        try:
            return self.expand(text)
        finally:
            if stack:
                stack.pop()

    def fail(self, text: str) -> NoReturn:
        """Give up, naming where."""
        where = " > ".join(name for name in self.machine.stack[-5:] if name)
        raise LimitError(f"{text} (in {where})" if where else text, LIMITS_HINT)
