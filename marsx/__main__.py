"""The door: marsd, marsadm or mars-status, by the name it is called under or by the first argument.

Imports late: `--version` loads nothing but this file, and each program only its own rooms. Every error of the programs
leaves here as one line on stderr, a hint below it, and the exit status of its class.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import marsx

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from marsx.base.errors import MarsError

PROGRAMS = {
    "marsd": "marsx.daemon.marsd",
    "marsadm": "marsx.admin.marsadm",
    "mars-status": "marsx.monitor.mars_status",
}

USAGE = """\
usage: {me} PROGRAM [ARGUMENT...]

PROGRAM is one of
  marsd         the daemon
  marsadm       administration
  mars-status   display

`{me} PROGRAM --help` says more. A link to this file with the name of a program starts that program.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program that `argv` (with the program's name in front) means; returns the exit status."""
    argv = list(sys.argv if argv is None else argv)
    called_as = argv[0].rpartition("/")[2] if argv else ""
    rest = argv[1:]
    if called_as in PROGRAMS:
        program = called_as
    elif rest and rest[0] in PROGRAMS:
        program, rest = rest[0], rest[1:]
    else:
        return _no_program(called_as, rest)
    if rest and rest[0] in ("--version", "-V"):
        return _guarded(program, _print_version, [program])
    return _guarded(program, _load(program), rest)


def run() -> NoReturn:
    """`main`, and the end of the process. A program without threads ends at once: it is no use to take a picture of a
    large cluster apart, object by object, which lasts a tenth of the time that a display takes."""
    status = main()
    if "threading" in sys.modules:
        sys.exit(status)
    import atexit
    import os

    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        status = status or 1
    os._exit(status & 0xFF)


INSPECT = {"CO_OPTIMIZED": 1, "CO_NEWLOCALS": 2, "CO_VARARGS": 4, "CO_VARKEYWORDS": 8, "CO_GENERATOR": 32,
           "CO_COROUTINE": 128, "CO_ASYNC_GENERATOR": 512}


def spare_inspect() -> None:
    """`inspect` costs more than all of our own modules that a display needs, and is only asked for constants (by our
    extensions when they are loaded) or for nothing (by dataclasses). So it is loaded when more than that is asked."""
    if "inspect" in sys.modules:
        return
    from types import ModuleType

    def load(name: str) -> object:
        from importlib import import_module

        if sys.modules.get("inspect") is stub:
            del sys.modules["inspect"]
        real = import_module("inspect")
        stub.__dict__.update(real.__dict__)
        return getattr(real, name)

    stub = ModuleType("inspect")
    stub.__dict__.update(INSPECT, __getattr__=load)
    sys.modules["inspect"] = stub


def _no_program(called_as: str, rest: list[str]) -> int:
    me = called_as if called_as and called_as != "__main__.py" else "python3 -m marsx"
    if rest and rest[0] in ("--version", "-V"):
        return _guarded("mars", _print_version, ["mars"])
    if rest and rest[0] in ("--help", "-h", "help"):
        return _guarded("mars", _print, [USAGE.format(me=me)])
    said = f"unknown program {rest[0]!a}" if rest else "which program?"
    sys.stderr.write(f"mars: {said}\n\n{USAGE.format(me=me)}")
    return 2


def _print(words: list[str]) -> int:
    sys.stdout.write(words[0])
    return 0


def _print_version(words: list[str]) -> int:
    return _print([f"{words[0]} {marsx.__version__}\n"])


def _load(program: str) -> Callable[[list[str]], int | None]:
    """The program's main, imported when it is called."""
    def start(rest: list[str]) -> int | None:
        from importlib import import_module

        spare_inspect()
        return import_module(PROGRAMS[program]).main(rest)

    return start


def _guarded(program: str, action: Callable[[list[str]], int | None], rest: list[str]) -> int:
    """Exit status of `action(rest)`; errors become text."""
    try:
        status = action(rest) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if not _reader_gone():
            raise
        _forget_stdout()
        return 141
    except SystemExit:
        raise
    except BaseException as error:
        from marsx.base.errors import MarsError

        if not isinstance(error, MarsError):
            raise
        _tell(program, error)
        return error.exit_code


def _tell(program: str, error: MarsError) -> None:
    from marsx.base.text import printable

    lines = [f"{program}: {printable(line)}" if number == 0 else f"  {printable(line)}"
             for number, line in enumerate((error.text or type(error).__name__).splitlines())]
    lines += [f"  {printable(line)}" for line in error.hint.splitlines()]
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
    sys.stderr.write("\n".join(lines) + "\n")


def _reader_gone() -> bool:
    """True when it is our standard output that broke, and not some socket of the program."""
    import select

    poll = select.poll()
    poll.register(1, 0)
    return any(events & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, events in poll.poll(0))


def _forget_stdout() -> None:
    """The reader of our output has gone: let the interpreter's last flush go nowhere instead of complaining."""
    import os

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


if __name__ == "__main__":
    run()
