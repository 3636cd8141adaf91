"""What the keeper holds for the worker: devices with their /dev/fuse descriptors, and data disks.

Invariants:
  * `Device.state`: created (channel made, nothing attached) -> attached (block device exists) -> gone (taken away; its
    descriptors give ENODEV). Only attach and detach move it, each by the result of its own child.
  * Descriptors of a device are closed by `dev-drop` only, and never while it is attached: that would be an I/O error
    for its users.
  * Every name from the worker is checked before it becomes part of a path.

Requests are answered at once (`at_once`) or through a child (`by_child`), see `keeperjobs`.
"""
from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import Any

from marsx.daemon import keeperjobs
from marsx.daemon.keeperjobs import Child, Job, Result
from marsx.device import loop
from marsx.device.frontend import Attached, FrontEnd, check_block_size, check_clones, check_name, check_size

DETACH_PATIENCE_S = 3.0
PATIENCE_MAX_S = 60.0
Request = dict[str, Any]


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors nobody wants."""
    for fd in fds:
        os.close(fd)


class Device:
    """One device and what the keeper holds of it. `number`: announced loop number, -1 before."""

    def __init__(self, name: str, fds: list[int], mount: int) -> None:
        self.name = name
        self.fds = fds
        self.mount = mount
        self.size = 0
        self.block_size = 0
        self.state = "created"
        self.number = -1
        self.attached: Attached | None = None
        self.restart = 0

    def close_mount(self) -> None:
        """From attach on, the loop device alone keeps the file system."""
        if self.mount >= 0:
            os.close(self.mount)
            self.mount = -1

    def close(self) -> None:
        """Let go of everything: the kernel ends the connection when no worker holds it either."""
        self.close_mount()
        close_all(self.fds)
        self.fds = []

    def facts(self) -> dict[str, Any]:
        """As `hello` and the state file tell it."""
        path = self.attached.path if self.attached and self.state == "attached" else ""
        return {"name": self.name, "size": self.size, "block_size": self.block_size, "clones": len(self.fds),
                "restart": self.restart, "state": self.state, "loop": path}


class Holdings:
    """See the module. `changed` is called when the state file must follow; `is_busy` knows of children at work."""

    def __init__(self, front: FrontEnd, changed: Callable[[], None],
                 is_busy: Callable[[tuple[str, str]], bool]) -> None:
        self.front = front
        self.changed = changed
        self.is_busy = is_busy
        self.devices: dict[str, Device] = {}
        self.disks: dict[str, int] = {}
        self.at_once: dict[str, Callable[[Request], Result]] = {"dev-fds": self._fds, "dev-drop": self._drop}
        self.by_child: dict[str, Callable[[Request], Job]] = {
            "disk-open": self._disk_open, "disk-close": self._disk_close, "dev-create": self._create,
            "dev-attach": self._attach, "dev-detach": self._detach, "dev-resize": self._resize,
            "dev-users": self._users}

    def attached(self) -> list[str]:
        """Names of the devices that exist for their users."""
        return [device.name for device in self.devices.values() if device.state == "attached"]

    def bound_numbers(self) -> dict[int, str]:
        """Loop numbers that may be bound for us -> device; what a next keeper would have to look after."""
        return {d.number: d.name for d in self.devices.values() if d.number >= 0 and d.state != "gone"}

    def facts(self) -> list[dict[str, Any]]:
        """All devices as `hello` tells them."""
        return [device.facts() for device in self.devices.values()]

    def count_restart(self) -> None:
        """A new worker takes over all devices."""
        for device in self.devices.values():
            device.restart += 1

    def close_devices(self) -> None:
        """The end, or a forced stop: users of what is still attached get I/O errors."""
        for device in self.devices.values():
            device.close()

    # ---- disks -------------------------------------------------------------------------------------------------------

    def _disk_open(self, request: Request) -> Job:
        path = _check_path(request)

        def work(_: Child) -> Result:
            if path in self.disks:
                return {"ok": True}, []
            return keeperjobs.open_disk(path, {os.makedev(7, number) for number in self.bound_numbers()})

        def apply(result: dict[str, Any], fds: list[int]) -> Result:
            if fds:
                self.disks[path] = fds[0]
                self.changed()
            return result, [self.disks[path]] if "ok" in result else []

        return Job(("disk", path), work, apply)

    def _disk_close(self, request: Request) -> Job:
        path = _check_path(request)

        def work(child: Child) -> Result:
            child.wait()
            return keeperjobs.close_disk(self.disks.get(path))

        def forked() -> None:
            if path in self.disks:
                os.close(self.disks.pop(path))
                self.changed()

        def keep() -> list[int]:
            return [self.disks[path]] if path in self.disks else []

        return Job(("disk", path), work, keep=keep, forked=forked)

    # ---- devices -----------------------------------------------------------------------------------------------------

    def _find(self, request: Request) -> Device:
        name = check_name(request.get("name"))
        if name not in self.devices:
            raise OSError(errno.ENODEV, f"the keeper has no device {name}")
        return self.devices[name]

    def _fds(self, request: Request) -> Result:
        return {"ok": True}, list(self._find(request).fds)

    def _drop(self, request: Request) -> Result:
        device = self._find(request)
        if self.is_busy(("dev", device.name)):
            raise OSError(errno.EBUSY, f"{device.name} is still being attached or detached")
        if device.state == "attached" or device.number >= 0:
            raise OSError(errno.EBUSY, f"{device.name} is still attached: detach it first")
        del self.devices[device.name]
        device.close()
        self.changed()
        return {"ok": True}, []

    def _create(self, request: Request) -> Job:
        name, clones = check_name(request.get("name")), check_clones(request.get("clones", 1))

        def work(_: Child) -> Result:
            if name in self.devices:
                raise OSError(errno.EEXIST, f"the keeper has {name} already: dev-fds, or dev-drop when it is gone")
            channel = self.front.create(name, clones)
            return {"ok": True}, [*channel.fds, channel.mount]

        def apply(result: dict[str, Any], fds: list[int]) -> Result:
            if not fds:
                return result, []
            self.devices[name] = Device(name, fds[:-1], fds[-1])
            self.changed()
            return result, fds[:-1]

        return Job(("dev", name), work, apply)

    def _attach(self, request: Request) -> Job:
        device = self._find(request)
        size, block_size = check_size(request.get("size")), check_block_size(request.get("block_size", 512))

        def work(child: Child) -> Result:
            if device.state == "attached" and device.attached:
                if (device.size, device.block_size) != (size, block_size):
                    raise OSError(errno.EEXIST, f"{device.name} is attached already with other sizes")
                return {"ok": True, "loop": device.attached.path}, []
            if device.mount < 0:
                raise OSError(errno.ENODEV, f"{device.name} is gone: drop it and create it anew")
            if device.number >= 0:
                self.front.forget(device.name, device.number)
            found = self.front.attach(device.name, device.mount, size, block_size, lambda n: child.step(number=n))
            return {"ok": True, "loop": found.path, "attached": list(found)}, []

        def on_step(step: dict[str, Any]) -> None:
            device.number = int(step["number"])
            self.changed()

        def apply(result: dict[str, Any], _: list[int]) -> Result:
            found = result.pop("attached", None)
            if found:
                device.attached = Attached(*found)
                device.size, device.block_size, device.state = size, block_size, "attached"
                device.close_mount()
            elif device.state == "created" and "died" not in result:
                device.number = -1
            self.changed()
            return result, []

        return Job(("dev", device.name), work, apply, keep=lambda: [device.mount] if device.mount >= 0 else [],
                   on_step=on_step)

    def _detach(self, request: Request) -> Job:
        device = self._find(request)
        wanted = request.get("patience", DETACH_PATIENCE_S)
        patience = wanted if isinstance(wanted, (int, float)) and 0 <= wanted <= PATIENCE_MAX_S else DETACH_PATIENCE_S

        def work(_: Child) -> Result:
            if device.state != "attached" or not device.attached:
                if device.state == "created" and device.number >= 0:
                    self.front.forget(device.name, device.number)
                return {"ok": True}, []
            who = self.front.detach(device.name, device.attached, patience)
            return ({"busy": who} if who else {"ok": True}), []

        def apply(result: dict[str, Any], _: list[int]) -> Result:
            if "ok" in result:
                device.state = "gone" if device.state == "attached" else device.state
                device.number = -1
                self.changed()
            return result, []

        return Job(("dev", device.name), work, apply)

    def _resize(self, request: Request) -> Job:
        device, size = self._find(request), check_size(request.get("size"))

        def work(_: Child) -> Result:
            if device.state != "attached" or not device.attached:
                raise OSError(errno.ENODEV, f"{device.name} is not attached")
            self.front.resize(device.name, device.attached, size)
            return {"ok": True}, []

        def apply(result: dict[str, Any], _: list[int]) -> Result:
            if "ok" in result:
                device.size = size
                self.changed()
            return result, []

        return Job(("dev", device.name), work, apply)

    def _users(self, request: Request) -> Job:
        device = self._find(request)

        def work(_: Child) -> Result:
            found = []
            if device.state == "attached" and device.attached:
                found = self.front.users(device.name, device.attached)
            return {"count": len(found), "users": found}, []

        return Job(("dev", device.name), work)


def _check_path(request: Request) -> str:
    path = request.get("path")
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise OSError(errno.EINVAL, f"not a path: {path!r:.100}")
    return path


def leftovers(dev_dir: str, recorded: dict[str, Any]) -> dict[int, str]:
    """Loop number -> device of what a dead keeper may have left: by its own record, and by the links in /dev/mars."""
    found: dict[int, str] = {}
    for number, name in recorded.items():
        try:
            found[int(number)] = check_name(name)
        except (ValueError, OSError):
            continue
    for name in os.listdir(dev_dir):
        target = loop.link_target(dev_dir, name)
        if target is not None:
            found.setdefault(target, name)
    return found


def leftover_job(dev_dir: str, name: str, number: int, apply: Callable[[dict[str, Any], list[int]], Result]) -> Job:
    """Take away what a dead keeper left behind. The result names the number, and has a text where something remains."""

    def work(_: Child) -> Result:
        return {"text": loop.clear_leftover(dev_dir, name, number)}, []

    def with_number(result: dict[str, Any], fds: list[int]) -> Result:
        return apply({**result, "number": number}, fds)

    return Job(("leftover", str(number)), work, with_number)
