"""The seal of a data device: there while nobody writes, gone before somebody does, broken until somebody decides."""
from __future__ import annotations

import asyncio
import os
import random
from types import SimpleNamespace
from typing import Any

import pytest

from marsx.base.errors import PreconditionError
from marsx.base.position import LogPos
from marsx.daemon.seal import KEY, Seal
from marsx.tree import paths
from marsx.tree.view import View
from marsx.volume.env import Env

R, SIZE = "r", 4 << 20


class Rig:
    """A runner as far as a seal sees it. The replica is not consistent, so that only samples count."""

    def __init__(self, folder: Any, primary: str = "a") -> None:
        self.values = {paths.data(R, "a"): "/dev/x", paths.size(R): str(SIZE), paths.syncstatus(R, "a"): "512",
                       paths.primary(R): primary, paths.member(R, "a"): "m1",
                       paths.replay(R, "a"): "log-000000001-a,0,0"}
        self.folder, self.messages = folder, {}
        (folder / "disk").write_bytes(random.Random(1).randbytes(SIZE))
        self.fd = os.open(folder / "disk", os.O_RDWR)
        self.env = Env(str(folder), "u", R, "a", SIZE, 512, None, lambda: 1)  # type: ignore[arg-type]
        self.start()

    def start(self) -> None:
        """marsd, anew."""
        site = SimpleNamespace(
            host="a", blocking=self._blocking, view=lambda: View([(k, v, 1) for k, v in self.values.items()], {}),
            store=SimpleNamespace(root=str(self.folder), put=self._put),
            say=lambda resource, key, text: self.messages.update({key: text}))
        self.runner = SimpleNamespace(site=site, resource=R, disk_fd=self.fd, device_path="/dev/x", replay_trouble="",
                                      producer=None, consumer=SimpleNamespace(at=LogPos(1, "a", 0), copy=None))
        self.runner.consumer.copy = SimpleNamespace(at=LogPos(1, "a", 0))
        self.seal = Seal(self.runner)  # type: ignore[arg-type]

    async def _blocking(self, call: Any, *args: Any) -> Any:
        return call(*args)

    def _put(self, rel: str, value: str, **_: Any) -> None:
        self.values[rel] = value

    def attach(self, held: bool = False) -> str:
        """What is found."""
        self.start()
        asyncio.run(self.seal.check(self.env, held))
        return self.seal.broken

    def detach(self) -> None:
        """In the ordinary way."""
        asyncio.run(self.seal.put(self.env))

    def scribble(self, offset: int = 1024) -> None:
        """Somebody writes to the disk."""
        os.pwrite(self.fd, b"by hand", offset)

    @property
    def there(self) -> bool:
        """Is there a seal?"""
        return (self.folder / "local-a/seal-r").exists()


@pytest.fixture(params=["a", "b"])
def rig(tmp_path, request):
    """On the primary, and on a secondary of b."""
    made = Rig(tmp_path, request.param)
    yield made
    os.close(made.fd)


def test_nobody_touched_it(rig):
    """A seal is only there between a proper end and the next attach; what MARS wrote meanwhile is never held against
    it, nor what was written after an end that was not proper."""
    assert rig.attach() == "" and not rig.there
    rig.scribble(0)
    rig.detach()
    assert rig.there and rig.attach() == "" and not rig.there
    rig.scribble(100)           # a crash
    assert rig.attach() == "" and not rig.there
    rig.detach()
    rig.scribble(200)
    assert rig.attach(held=True) == "" and not rig.there, "the keeper held it"


def test_changed(rig):
    """It stays broken over restarts and detach; nothing runs, the words say what to do; a secondary is not
    consistent."""
    rig.attach()
    rig.detach()
    rig.scribble()
    for _ in range(3):
        assert "/dev/x was changed" in rig.attach()
        rig.detach()
    assert rig.runner.replay_trouble == rig.messages[KEY] == rig.messages["err-resource"]
    assert "marsadm fake-sync r" in rig.messages[KEY] and "marsadm invalidate r" in rig.messages[KEY]
    assert rig.values[paths.syncstatus(R, "a")] == ("512" if rig.values[paths.primary(R)] == "a" else "0")
    rig.seal.drop()             # invalidate
    assert not rig.runner.replay_trouble and not rig.messages[KEY] and rig.attach() == ""


def test_accepted(rig):
    """fake-sync: on a secondary it is forgotten; on the primary it stays until the others can know of it, and nobody
    has decided when another host becomes primary before."""
    rig.attach()
    rig.detach()
    rig.scribble()
    rig.attach()
    rig.seal.accept(False)
    assert not rig.seal.broken and not rig.runner.replay_trouble
    if rig.values[paths.primary(R)] == "b":
        assert not rig.there and not rig.seal.accepted
        return
    assert rig.attach() == "" and rig.seal.accepted and rig.there
    rig.detach()
    assert rig.attach() == "" and rig.seal.accepted
    rig.values[paths.primary(R)] = "b"
    rig.seal.judge(rig.runner.site.view())
    assert rig.seal.broken and not rig.seal.accepted and rig.attach()


def test_not_where_the_log_goes_on(tmp_path):
    """A log behind the disk position would go over what was changed."""
    rig = Rig(tmp_path)
    rig.attach()
    rig.detach()
    rig.scribble()
    rig.attach()
    rig.runner.consumer.copy.at = LogPos(1, "a", 4096)
    with pytest.raises(PreconditionError, match="go over"):
        rig.seal.accept(False)
    assert rig.seal.broken
    rig.seal.accept(True)
    assert rig.seal.accepted
    os.close(rig.fd)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"member": "m1"}', '{"member": "m1", "broken": 3}', "x" * 3000])
def test_damaged_or_foreign_seal_is_nothing(tmp_path, damage):
    """What cannot be read, and a seal of another membership, says nothing."""
    rig = Rig(tmp_path)
    rig.attach()
    rig.detach()
    rig.scribble()
    (tmp_path / "local-a/seal-r").write_text(damage)
    assert rig.attach() == "" and not rig.there
    rig.detach()
    rig.scribble(0)
    rig.values[paths.member(R, "a")] = "m2"
    assert rig.attach() == ""
    os.close(rig.fd)
