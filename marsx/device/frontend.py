"""The contract between the keeper and a front end (what turns requests of the kernel into calls of our server).

A front end is a pair of halves. The kernel half (connection, block device node) is made and taken away through
`FrontEnd` below, always in a short-lived child of the keeper, because each step may wait for the server. The serving
half lives in the worker (`marsx._ext.marsdev`) and gets nothing but descriptors.

What every front end promises:
  * `create` makes the channel: descriptors that the keeper holds for as long as the device lives, so that a dead worker
    is only a pause. Nothing can reach the device yet.
  * `attach` makes the block device with exactly `size` bytes and `block_size` logical blocks, and only then the link
    `dev_dir/NAME`. A failed attach leaves nothing behind.
  * `detach` takes the device away if, and only if, nobody has it open (rule 20); all dirty pages are written first.
    Otherwise everything stays as it was and the answer says who has it.
  * `resize` grows the live device; it never shrinks.
"""
from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import NamedTuple, Protocol

NAME_MAX = 63
MAX_CLONES = 64
SECTOR = 512
BLOCK_SIZES = (512, 1024, 2048, 4096)
FILE_SIZE = 1 << 62
"""Size that the server gives to the file behind the loop device; the device's size is set at the loop device only."""

_NAME = re.compile(r"[A-Za-z0-9_][-A-Za-z0-9_]*", re.ASCII)


class Channel(NamedTuple):
    """What `create` made: descriptors to serve on, and the one that keeps the unmounted file system for `attach`."""

    fds: list[int]
    mount: int


class Attached(NamedTuple):
    """A block device that exists: number of its loop device, and device number and inode of the file behind it."""

    number: int
    backing_dev: int
    backing_ino: int

    @property
    def path(self) -> str:
        return f"/dev/loop{self.number}"


class FrontEnd(Protocol):
    """The kernel half. All calls may block and run in a child of the keeper."""

    name: str

    def create(self, device: str, clones: int) -> Channel:
        """The channel of a new device; `clones` descriptors in all."""

    def attach(self, device: str, mount: int, size: int, block_size: int, announce: Callable[[int], None]) -> Attached:
        """The block device over the channel; `announce(number)` is called before anything is bound to that number."""

    def detach(self, device: str, attached: Attached, patience: float) -> list[str]:
        """Empty when the device is gone; else who has it, and nothing has changed."""

    def forget(self, device: str, number: int) -> None:
        """Take away what an `attach` that was killed half way may have left at the number it announced."""

    def resize(self, device: str, attached: Attached, size: int) -> None:
        """The live device has `size` bytes."""

    def users(self, device: str, attached: Attached) -> list[str]:
        """Who has the device open, as text for people (racy: never decide by it)."""


def check_name(name: object) -> str:
    """`name` if it may be a device name: it becomes a file name in /dev/mars and in the FUSE file system."""
    if not isinstance(name, str) or len(name) > NAME_MAX or not _NAME.fullmatch(name):
        raise OSError(errno.EINVAL, f"not a device name: {name!r:.100}")
    return name


def check_size(size: object) -> int:
    """`size` if a device can have it: whole sectors, more than none, inside the file behind it."""
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= FILE_SIZE or size % SECTOR:
        raise OSError(errno.EINVAL, f"not a device size (a multiple of {SECTOR} bytes): {size!r:.100}")
    return size


def check_block_size(block_size: object) -> int:
    """`block_size` if a device can have it as its logical block size."""
    if isinstance(block_size, bool) or block_size not in BLOCK_SIZES:
        raise OSError(errno.EINVAL, f"not a logical block size {BLOCK_SIZES}: {block_size!r:.100}")
    return int(block_size)  # type: ignore[call-overload]


def check_clones(clones: object) -> int:
    """`clones` if that many descriptors are sensible for one device."""
    if not isinstance(clones, int) or isinstance(clones, bool) or not 1 <= clones <= MAX_CLONES:
        raise OSError(errno.EINVAL, f"number of descriptors must be 1 to {MAX_CLONES}: {clones!r:.100}")
    return clones
