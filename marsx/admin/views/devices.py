"""Values of the data device and of the device that applications use: paths, opens, mounts, errors."""

from __future__ import annotations

import os

from marsx.admin.macro.numbers import Number, number, whole
from marsx.admin.views.look import Look
from marsx.admin.views.table import Value

SECTOR = 512


def get_device(look: Look, resource: str) -> str:
    """Its path here; `PATH@HOST` where it is at another host only."""
    path = look.device(resource)
    primary = next(iter(look.tree.actual_primaries(resource)), "")
    if not primary or primary == look.host or look.is_member(resource):
        return path
    return f"{look.ctx.paths.dev_dir}/{look.tree.device(resource, primary) or resource}@{primary}"


def device_size(look: Look, resource: str) -> int:
    """What the kernel says; 0 if it is not here."""
    from marsx.base.mounts import device_number

    path = look.device(resource)
    place = device_number(path)
    try:
        if not place:
            return os.stat(path).st_size
        with open(f"/sys/dev/block/{place}/size", encoding="ascii") as file:
            return int(file.read(32)) * SECTOR
    except (OSError, ValueError):
        return 0


def opened(look: Look, resource: str) -> int:
    """Number of users that marsd has found."""
    return look.count(resource, "open-count")


def is_opened(look: Look, resource: str) -> bool:
    """Somebody uses it, as marsd or the mount table says."""
    return bool(opened(look, resource)) or look.mount(resource) is not None


def completion_stamp(look: Look, resource: str) -> Number | None:
    """When a request was last answered, in s."""
    text = look.actual(resource, "if-completion-stamp")
    return number(text) if text else None


def completion_age(look: Look, resource: str) -> int:
    """Seconds since then; -1: not known."""
    stamp = completion_stamp(look, resource)
    return -1 if stamp is None else max(0, look.now_ns // 1_000_000_000 - whole(stamp))


def _mounted(look: Look, resource: str, part: str) -> str:
    mount = look.mount(resource)
    return getattr(mount, part) if mount else ""


def errno_text(look: Look, resource: str, *args: str) -> str:
    """What an error number means; that of replay-code by default."""
    code = abs(whole(number(args[0] if args else _fact(look, resource, "replay-code"))))
    return os.strerror(code) if 0 < code < 1 << 31 else ""


def _fact(look: Look, resource: str, key: str) -> str:
    return look.actual(resource, key) or "0"


VALUES = (
    Value("get-disk", "text", "path of the data device here", lambda look, res: look.tree.data(res, look.host)),
    Value("get-device", "text", "path of the device here, or PATH@HOST", get_device),
    *(Value(name, "flag", "the data device exists here", lambda look, res: look.disk_there(res))
      for name in ("disk-present", "present-disk")),
    *(Value(name, "flag", "the device exists here", lambda look, res: look.device_there(res))
      for name in ("device-present", "present-device")),
    Value("device-size", "number", "size of the device here, 0 if it is not there", device_size),
    Value("device-opened", "number", "number of users of the device", opened),
    Value("is-device-opened", "flag", "the device is used", is_opened),
    Value("device-nrflying", "number", "requests that are not answered yet",
          lambda look, res: look.count(res, "if-flying")),
    Value("device-error", "text", "error of the device, 0 or negative",
          lambda look, res: _fact(look, res, "if-state")),
    Value("device-completion-stamp", "number", "when a request was last answered, in s", completion_stamp),
    Value("device-completion-age", "number", "seconds since then; -1 not known", completion_age),
    Value("known-device-mounted", "flag", "the device is mounted here",
          lambda look, res: look.mount(res) is not None),
    Value("known-device-mountpoint", "text", "where it is mounted", lambda look, res: _mounted(look, res, "point")),
    Value("known-device-fstype", "text", "with which file system", lambda look, res: _mounted(look, res, "fstype")),
    Value("known-device-mountflags", "text", "and which flags", lambda look, res: _mounted(look, res, "flags")),
    Value("disk-error", "text", "error of the data device, 0 or negative",
          lambda look, res: _fact(look, res, "disk-error")),
    Value("replay-code", "text", "how replay ended: 0 or negative, with details",
          lambda look, res: _fact(look, res, "replay-code")),
    Value("errno-text", "text", "what error {N} means, or that of replay-code", errno_text),
    Value("systemd-unit", "text", "unit that is started with the primary role",
          lambda look, res: look.tree.get(f"resource-{res}/systemd-start-unit")),
)  # fmt: skip
