"""Where things are (`Paths`) and what can be tuned (`TUNABLES`, `Settings`).

A tunable is a file below `run_dir/sys` holding one integer, as /proc/sys/mars was for the kernel module: it counts from
the moment it is written and is lost with the run directory. `etc_dir/marsd.toml`, table [tunables], makes a value last:

    [tunables]
    logger_flush_ms = 10
    "tcp_tuning_2_sync_traffic/ip_tos" = 8

Invariant: `Settings.get` always returns an integer within the tunable's range. What is not one (text, out of range, too
long, not a file) is not used: the default counts, and a message says so once per bad value.
"""
from __future__ import annotations

import os
import posixpath
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import marsx
from marsx.base.errors import MarsError, NotFoundError, PermissionDeniedError, PreconditionError, UsageError
from marsx.base.text import printable
from marsx.base.tunables import TUNABLES, Tunable

__all__ = ["TUNABLES", "Paths", "Settings", "Tunable", "parse_value", "self_command"]

_ENVIRONMENT = {"mars_dir": "MARS_DIR", "run_dir": "MARS_RUN_DIR", "dev_dir": "MARS_DEV_DIR", "etc_dir": "MARS_ETC_DIR"}
_FILE_MAX = 64
_TOML_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Paths:
    """The four directories of one installation; all absolute and normalised."""

    mars_dir: str = "/mars"
    run_dir: str = "/run/mars"
    dev_dir: str = "/dev/mars"
    etc_dir: str = "/etc/mars"

    def __post_init__(self) -> None:
        for field in fields(self):
            path = getattr(self, field.name)
            if not path.startswith("/") or any(ord(char) < 32 or ord(char) == 127 for char in path):
                option = "--" + field.name.replace("_", "-")
                raise UsageError(f"{option}: not an absolute path: {path!r}", "give a path that starts with /")
            object.__setattr__(self, field.name, posixpath.normpath("/" + path.lstrip("/")))

    @classmethod
    def of(cls, options: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Paths:
        """Paths from options (`--mars-dir` or `mars_dir`), else the environment, else the defaults."""
        options = options or {}
        environ = os.environ if environ is None else environ
        chosen = {}
        for name, variable in _ENVIRONMENT.items():
            value = options.get("--" + name.replace("_", "-")) or options.get(name) or environ.get(variable)
            if value:
                chosen[name] = str(value)
        return cls(**chosen)

    def environment(self) -> dict[str, str]:
        """The variables that give a child process the same paths."""
        return {variable: getattr(self, name) for name, variable in _ENVIRONMENT.items()}

    @property
    def sys_dir(self) -> str:
        """Directory of the tunables."""
        return f"{self.run_dir}/sys"

    @property
    def control_socket(self) -> str:
        """Where marsd listens for marsadm."""
        return f"{self.run_dir}/marsd.sock"

    @property
    def messages_file(self) -> str:
        """What marsd tells people."""
        return f"{self.run_dir}/marsd.log"

    @property
    def config_file(self) -> str:
        """Settings that last."""
        return f"{self.etc_dir}/marsd.toml"


def self_command(program: str) -> list[str]:
    """Command line that starts `program` (marsd, marsadm, mars-status) of this same installation."""
    if marsx.archive:
        return [sys.executable, "-IS", marsx.archive, program]
    return [sys.executable, "-m", "marsx", program]


def parse_value(tunable: Tunable, text: str) -> int:
    """The integer in `text` (one decimal number, blanks around it allowed), within the tunable's range."""
    word = text.strip()
    digits = word[1:] if word.startswith("-") else word
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise UsageError(f"{tunable.name}: not an integer: {printable(word[:40])!r}",
                         f"write one number from {tunable.low} to {tunable.high}")
    value = int(word)
    if not tunable.low <= value <= tunable.high:
        raise UsageError(f"{tunable.name}: {value} is outside {tunable.low}..{tunable.high}",
                         f"write one number from {tunable.low} to {tunable.high} ({tunable.unit})")
    return value


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


class Settings:
    """Live values of the tunables of one host. Cheap to make; reads `marsd.toml` once, when made."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._said: dict[str, str] = {}
        self._last: dict[str, int] = {}
        self.file = self._read_toml()
        self._defaults = self._defaults_from(self.file)

    def get(self, name: str) -> int:
        """Value that counts now."""
        tunable = self._tunable(name)
        try:
            text = self._read(name)
        except FileNotFoundError:
            self._last.pop(name, None)
            return self._defaults[name]
        except (OSError, UnicodeDecodeError) as error:
            self._say(name, f"{self._path(name)}: {error}; using {self._defaults[name]}")
            return self._defaults[name]
        if not text.strip():
            # A shell's `echo 5 > FILE` makes the file empty for an instant: the value before it still counts.
            return self._last.get(name, self._defaults[name])
        try:
            value = parse_value(tunable, text)
        except UsageError as error:
            self._say(name, f"{self._path(name)}: {error.text}; using {self._defaults[name]}")
            return self._defaults[name]
        self._said.pop(name, None)
        self._last[name] = value
        return value

    def default(self, name: str) -> int:
        """Value that counts when the file does not exist: that of `marsd.toml`, else the built-in one."""
        self._tunable(name)
        return self._defaults[name]

    def put(self, name: str, text: str) -> int:
        """Check `text` and make it the live value; returns it as an integer."""
        value = parse_value(self._tunable(name), text)
        path = self._path(name)
        partial = f"{path}.{os.getpid()}.tmp"
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(fd, "w", encoding="ascii") as file:
                file.write(f"{value}\n")
            os.replace(partial, path)
        except PermissionError as error:
            raise PermissionDeniedError(f"cannot write {path}: {error.strerror}", "run as root") from error
        except OSError as error:
            raise MarsError(f"cannot write {path}: {error.strerror}", "look at the space there") from error
        return value

    def publish(self) -> None:
        """Make the missing files with their defaults, so that they can be seen and written (marsd, when it starts)."""
        for name in TUNABLES:
            if not os.path.lexists(self._path(name)):
                self.put(name, str(self._defaults[name]))

    def _tunable(self, name: str) -> Tunable:
        try:
            return TUNABLES[name]
        except KeyError:
            raise NotFoundError(f"unknown tunable: {printable(name[:80])}",
                                "marsadm view-tunables lists them") from None

    def _path(self, name: str) -> str:
        return f"{self._paths.sys_dir}/{name}"

    def _read(self, name: str) -> str:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(self._path(name), flags)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError("not a plain file")
            return os.read(fd, _FILE_MAX).decode("ascii")
        finally:
            os.close(fd)

    def _read_toml(self) -> dict[str, Any]:
        path = self._paths.config_file
        try:
            with open(path, "rb") as file:
                data = file.read(_TOML_MAX + 1)
            if len(data) > _TOML_MAX:
                raise PreconditionError(f"{path}: longer than {_TOML_MAX} bytes", "shorten or remove it")
        except FileNotFoundError:
            return {}
        except PermissionError as error:
            raise PermissionDeniedError(f"cannot read {path}: {error.strerror}", "run as root") from error
        except OSError as error:
            raise PreconditionError(f"cannot read {path}: {error.strerror}", "mend or remove it") from error
        import tomllib  # late: most calls of marsadm need no settings

        try:
            return tomllib.loads(data.decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PreconditionError(f"{path}: {error}", "mend it; its form is TOML") from error

    def _defaults_from(self, file: Mapping[str, Any]) -> dict[str, int]:
        defaults = {tunable.name: tunable.default for tunable in TUNABLES.values()}
        table = file.get("tunables", {})
        if not isinstance(table, dict):
            raise PreconditionError(f"{self._paths.config_file}: tunables is not a table", "write [tunables]")
        for name, value in _flatten(table):
            if name not in TUNABLES:
                self._say(name, f"{self._paths.config_file}: unknown tunable {printable(name[:80])}; not used")
                continue
            try:
                text = str(value) if isinstance(value, int) and not isinstance(value, bool) else repr(value)
                defaults[name] = parse_value(TUNABLES[name], text)
            except UsageError as error:
                self._say(name, f"{self._paths.config_file}: {error.text}; using {defaults[name]}")
        return defaults

    def _say(self, key: str, text: str) -> None:
        if self._said.get(key) != text:
            self._said[key] = text
            from marsx.base import messages  # late: displays rarely have to say anything

            messages.get("base.config").warning("%s", text)
