"""Joins values, built-in macros and those of files to the macro language, for one call of `view`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from fnmatch import fnmatchcase

from marsx.admin.context import Context
from marsx.admin.macro.evaluator import Machine
from marsx.admin.macro.files import MacroFiles
from marsx.admin.macro.functions import FUNCTIONS
from marsx.admin.views.look import Look
from marsx.admin.views.macros import MACROS
from marsx.admin.views.table import Value, all_values, as_text
from marsx.base.errors import PermissionDeniedError, UsageError
from marsx.tree import paths
from marsx.tree.store import Store


class ViewSource:
    """What `admin.macro.evaluator.Source` asks for. `with_files`: macros of people count too."""

    def __init__(self, ctx: Context, with_files: bool = True) -> None:
        self.ctx = ctx
        self.values: dict[str, Value] = all_values()
        self._files = MacroFiles(os.environ, ctx.warn) if with_files else None
        self.look = Look(ctx, ctx.view())
        """The picture of the tree as it is now."""
        self.machine = Machine(self, FUNCTIONS, ctx.monotonic, ctx.options.timeout)

    def _look_again(self) -> None:
        if self.look.tree is not self.ctx.view():
            self.look = Look(self.ctx, self.ctx.view())

    def run(self, text: str, resource: str, args: tuple[str, ...] = (), name: str = "") -> str:
        """A macro text about a resource ("" for none)."""
        return self.machine.run(text, self._variables(resource, args, name), name)

    def show(self, name: str, resource: str, args: tuple[str, ...] = ()) -> str | None:
        """The macro NAME, else the value NAME; None if there is neither."""
        text = self.macro(name)
        return self.value(resource, name, list(args)) if text is None else self.run(text, resource, args, name)

    def _variables(self, resource: str, args: tuple[str, ...], name: str) -> dict[str, str]:
        ctx, look = self.ctx, self.look
        root = ctx.paths.mars_dir
        return {
            "cmd": f"view-{name}" if name not in ("", "default") else "view", "res": resource,
            "resdir": f"{root}/resource-{resource}" if resource else "", "mars": root, "host": look.host,
            "ip": look.tree.ips.get(look.host, ""), "timeout": f"{ctx.options.timeout:g}",
            "threshold": str(ctx.options.threshold), "window": f"{ctx.options.window:g}",
            "force": str(int(ctx.options.force)), "dry-run": str(int(ctx.options.dry_run)),
            "verbose": str(ctx.options.verbose), "0": name,
            **{str(nr): arg for nr, arg in enumerate(args, 1)},
        }  # fmt: skip

    # Source

    def value(self, resource: str, name: str, args: list[str]) -> str | None:
        known = None if args else self.look.texts.get((resource, name))
        if known is not None:
            return known
        row = self.values.get(name)
        if row is None:
            return None
        if row.scope == "resource" and resource not in self.look.names:
            raise UsageError(f"'{name}' is a value of a resource", f"marsadm view-{name} RES")
        found = as_text(typed(self.look, row, resource, args))
        if row.kind == "wait":
            self._look_again()
        elif not args:
            self.look.texts[resource, name] = found
        return found

    def macro(self, name: str) -> str | None:
        text = self._files.text(name) if self._files else None
        return MACROS.get(name) if text is None else text

    def macro_names(self) -> list[str]:
        """Macros of people, by name."""
        return self._files.names() if self._files else []

    def link(self, path: str) -> str:
        return self.look.tree.get(self._relative(path))

    def glob(self, pattern: str) -> list[str]:
        pattern = self._relative(pattern)
        depth = pattern.count("/")
        names = self.ctx.store.names()
        return [rel for rel in names if rel.count("/") == depth and fnmatchcase(rel, pattern)]

    def _relative(self, path: str) -> str:
        return path.removeprefix(self.ctx.paths.mars_dir).strip("/")

    def set_link(self, path: str, value: str) -> None:
        rel = self._relative(path)
        name = paths.parse(rel)
        if name is None or name.kind != "userspace":
            raise UsageError(f"'{path[:80]}' cannot be set by a macro", "only entries in userspace/ can")
        problem = paths.value_problem(name, value) if value else "the value is empty"
        if problem:
            raise UsageError(problem)
        if os.geteuid() != 0:
            raise PermissionDeniedError("%setlink is for root", "run it as root")
        if self.ctx.options.dry_run:
            self.ctx.say(f"DRY_RUN: would create symlink '{self.ctx.paths.mars_dir}/{rel}' -> '{value}'")
            return
        store = Store(self.ctx.paths, self.ctx.host, self.ctx.lamport)
        store.load()
        store.put(rel, value, durable=True)
        self.ctx.forget()
        self._look_again()

    def wait(self, resource: str, condition: Callable[[], bool] | str) -> None:
        from marsx.admin import waits
        from marsx.admin.context import require_resource

        if isinstance(condition, str):
            require_resource(self.look.tree, resource)
            probe = waits.condition_probe(self.ctx, resource, condition)
        else:
            test = condition

            def probe(tree: object) -> str:
                self._look_again()
                return "" if test() else "the condition of the macro is not true yet"

        end = self.ctx.monotonic() + self.machine.left()
        waits.until(self.ctx, probe, "the macro waits", deadline=end)
        self._look_again()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def lamport_ns(self) -> int:
        return max(self.ctx.lamport.high_water, self.ctx.clock_ns())

    def real_ns(self) -> int:
        return self.ctx.clock_ns()

    def note(self, text: str) -> None:
        self.ctx.warn(text)


def typed(look: Look, row: Value, resource: str, args: list[str]) -> object:
    """A value with its type."""
    try:
        return row.of(look, resource, *args)
    except TypeError:
        if not args:
            raise
        raise UsageError(f"'{row.name}' takes no argument like '{' '.join(args)[:80]}'") from None
