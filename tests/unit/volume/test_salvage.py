"""Up to where damaged logs hold, and how they are ended there by force: nothing below the disk position, nothing that
holds, nothing without a copy (facts 5.4, rules 4, 5, 12)."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from marsx.base import durable
from marsx.base.errors import DamagedError
from marsx.base.position import LogPos
from marsx.log import writer
from marsx.log.chain import Point
from marsx.volume import recovery, salvage
from marsx.volume.env import Env
from tests.unit.daemon.small_logs import BLOCK, RESOURCE, SIZE, UUID, Facts, make_log, position, write

ONE = make_log(1, groups=4)
TWO = make_log(2, pred=ONE, groups=5)
THREE = make_log(3, pred=TWO, groups=3)


def hexed(log: Any, group: int) -> str:
    """Digest behind a group."""
    return log.digests[group].hex()


@pytest.fixture
def env(tmp_path: Path) -> Env:
    """Of host b, which follows a."""
    directory = tmp_path / "logs"
    directory.mkdir()
    write(directory, ONE, TWO, THREE)
    return Env(str(directory), UUID, RESOURCE, "b", SIZE, 512, Facts(), lambda: 1)  # type: ignore[arg-type]


def path(env: Env, nr: int) -> Path:
    return Path(env.directory) / f"log-{nr:09d}-a"


def flip(env: Env, nr: int, at: int) -> None:
    """A bit turns over at this byte of the file."""
    data = bytearray(path(env, nr).read_bytes())
    data[at] ^= 4
    path(env, nr).write_bytes(data)


def start(log: Any, group: int) -> int:
    """Byte of the file where a group begins."""
    return BLOCK + (log.ends[group - 1] if group else 0)


def nothing(env: Env) -> None:
    """All is sound."""


def rotten(env: Env) -> None:
    """Group 2 of log 2."""
    flip(env, 2, start(TWO, 2) + 4096 + 5)


def no_first_group(env: Env) -> None:
    flip(env, 2, start(TWO, 0) + 20)


def no_header(env: Env) -> None:
    flip(env, 2, 30)


def no_file(env: Env) -> None:
    path(env, 2).unlink()


def short(env: Env) -> None:
    os.truncate(path(env, 3), start(THREE, 1) + 4096)


def last_group(env: Env) -> None:
    flip(env, 3, start(THREE, 2) + 100)


def below(env: Env) -> None:
    """Group 1 of log 1, and the disk is further."""
    flip(env, 1, start(ONE, 1) + 100)


FROM_ONE = position(ONE, 1)


@pytest.mark.parametrize(("damage", "at", "end", "digest", "aside"), [
    pytest.param(nothing, FROM_ONE, position(THREE), hexed(THREE, -1), (), id="sound to the end"),
    pytest.param(rotten, FROM_ONE, position(TWO, 1), hexed(TWO, 1), (2, 3), id="a bad group"),
    pytest.param(no_first_group, FROM_ONE, LogPos(2, "a", 0), None, (2, 3), id="a bad first group"),
    pytest.param(no_header, FROM_ONE, position(ONE), hexed(ONE, -1), (2, 3), id="a bad header"),
    pytest.param(no_file, FROM_ONE, position(ONE), hexed(ONE, -1), (3,), id="a log in the middle is gone"),
    pytest.param(short, FROM_ONE, position(THREE, 0), hexed(THREE, 0), (3,), id="a torn tail"),
    pytest.param(last_group, FROM_ONE, position(THREE, 1), hexed(THREE, 1), (3,), id="the last group"),
    pytest.param(below, position(ONE, 2), position(THREE), hexed(THREE, -1), (), id="below the disk position"),
    pytest.param(no_header, position(TWO, 2), position(TWO, 2), "e" * 32, (2, 3), id="the header of the own log"),
    pytest.param(no_file, position(TWO, 2), position(TWO, 2), "e" * 32, (3,), id="the own log is gone"),
    pytest.param(no_file, LogPos(2, "a", 0), position(ONE), hexed(ONE, -1), (3,), id="the own log, at its beginning"),
    pytest.param(no_header, LogPos(2, "a", 0), position(ONE), hexed(ONE, -1), (2, 3), id="its header"),
])
def test_ends_where_it_holds(env: Env, tmp_path: Path, damage: Any, at: LogPos, end: LogPos, digest: str | None,
                             aside: tuple[int, ...]) -> None:
    """Rules 4, 5: the end is that of the last valid group, never below the disk position; recovery then finds just
    that, and the next log says so; what lies behind is kept."""
    damage(env)
    before = {nr: path(env, nr).read_bytes() for nr in (1, 2, 3) if path(env, nr).exists()}
    known = "e" * 32 if damage in (no_header, no_file) and at.nr == 2 and at.pos else ""
    sound = salvage.find(env, at, known, Point(hexed(ONE, -1), position(ONE)))
    assert (sound.end, sound.digest) == (end, digest or sound.digest) and sound.at.order <= end.order
    assert sound.at == (at if at.pos else position(ONE))
    assert {nr: path(env, nr).read_bytes() for nr in before} == before, "looking changes nothing"
    kept = salvage.cut(env, sound, str(tmp_path / "aside"), 0)
    assert sorted(kept) == [f"log-{nr:09d}-a" for nr in aside]
    logs = recovery.recover(env, sound.at, sound.at_digest, lambda nr, producer: 0)
    recovery.close_all(logs)
    assert logs[-1].header.name == f"log-{end.nr + 1:09d}-b" and logs[-1].end == 0
    assert (logs[-1].header.pred, logs[-1].header.pred_digest) == (end, sound.digest)
    for nr in aside:
        copy = (tmp_path / "aside" / f"log-{nr:09d}-a").read_bytes()
        if nr == end.nr and sound.header is not None:
            behind = BLOCK + end.pos
            assert copy[:BLOCK] == before[nr][:BLOCK] and copy[behind:] == before[nr][behind:len(copy)]
            assert not any(copy[BLOCK:behind]) and not any(before[nr][len(copy):])
        else:
            assert copy == before[nr]


def test_what_the_file_held_before_is_not_kept(env: Env, tmp_path: Path) -> None:
    """A recycled file: behind the last group lies another log; only groups of this one are kept."""
    rotten(env)
    with open(path(env, 2), "ab") as file:
        file.write(ONE.data[BLOCK:])
    salvage.cut(env, salvage.find(env, FROM_ONE, "", None), str(tmp_path / "aside"), 0)
    assert (tmp_path / "aside" / path(env, 2).name).stat().st_size == len(TWO.data)


def test_a_damaged_end_that_is_known_is_kept(env: Env, tmp_path: Path) -> None:
    """No group behind the damage says that it is of this log, but the log is known to have reached so far."""
    flip(env, 3, start(THREE, 2) + 3)
    sound = salvage.find(env, FROM_ONE, "", None)
    assert salvage.cut(env, sound, str(tmp_path / "aside"), THREE.end) == [path(env, 3).name]
    assert (tmp_path / "aside" / path(env, 3).name).stat().st_size == len(THREE.data)


def test_a_digest_that_nobody_knows_is_never_equal(env: Env) -> None:
    """Rule 6: nothing proves that this history is anybody else's."""
    no_file(env)
    found = {salvage.find(env, position(TWO, 2), "", None).digest for _ in range(3)}
    assert len(found) == 3


def test_nothing_known_nothing_taken(env: Env) -> None:
    """The disk position is the beginning of a log that is gone, and nobody knows what was before: it stops."""
    no_file(env)
    with pytest.raises(DamagedError, match="not known where it began"):
        salvage.find(env, LogPos(2, "a", 0), "", None)


def test_two_branches_are_for_people(env: Env) -> None:
    """Which of two logs with contents goes on is not guessed (rule 7)."""
    write(env.directory, make_log(2, "c", pred=ONE, groups=2))
    with pytest.raises(DamagedError, match="has parted"):
        salvage.find(env, FROM_ONE, "", None)


@pytest.mark.parametrize("damage", [rotten, no_first_group, no_header, no_file])
def test_a_crash_anywhere_is_found_again(env: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         damage: Any) -> None:
    """Rules 3, 5: cut off before each of its steps, the same is found again, until it comes to its end."""
    damage(env)
    want = salvage.find(env, FROM_ONE, "", None)
    steps = [(os, "rename"), (os, "truncate"), (os, "ftruncate"), (durable, "overwrite"), (durable, "sync_dir"),
             (writer, "create_log")]
    left = [0]

    def counted(real: Any) -> Any:
        def call(*args: Any, **kw: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return real(*args, **kw)
        return call

    for where, name in steps:
        monkeypatch.setattr(where, name, counted(getattr(where, name)))
    for dies_in in range(1, 30):
        sound = salvage.find(env, FROM_ONE, "", None)
        assert (sound.end, sound.digest) == (want.end, want.digest), dies_in
        left[0] = dies_in
        try:
            salvage.cut(env, sound, str(tmp_path / f"aside{dies_in}"), 0)
            break
        except KeyboardInterrupt:
            continue
    assert dies_in > 3
    left[0] = 0
    found = recovery.recover(env, FROM_ONE, "", lambda nr, producer: 0)
    recovery.close_all(found)
    assert found[-1].header.pred == want.end
    held = b"".join(file.read_bytes() for file in sorted(tmp_path.glob("aside*/*")))
    assert THREE.data in held, "what was behind is kept, wherever it was cut off"
