"""Runs under the I/O layer, for test_unreadable: python -m tests.fault.bad_sectors DIRECTORY SEED|cached

A log with a bad sector anywhere: recovery (or, where the disk position lies behind it, `examine`) names it, and it is
healed from a sound copy. Anything else ends with a traceback.
"""
from __future__ import annotations

import asyncio
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

from marsx.base.position import LogPos
from marsx.daemon import heal
from marsx.log.record import FileHeader
from marsx.volume import recovery
from marsx.volume.recovery import Damage, LogDamaged
from tests.fault.iolayer import Rules
from tests.unit.daemon.small_logs import BLOCK, Origin, Sink, make_log, position
from tests.unit.daemon.small_logs import write as write_logs
from tests.unit.daemon.test_heal import Far

ROUNDS = 40
ONE = make_log(1, groups=12)
TWO = make_log(2, pred=ONE, groups=4)


def damage_of(sink: Sink, at: LogPos, digest: str) -> Damage | None:
    """What recovery says from this disk position on."""
    try:
        recovery.close_all(recovery.recover(sink.env, at, digest, lambda nr, producer: ONE.end if nr == 1 else 0))
    except LogDamaged as err:
        assert "cannot be read" in err.text and err.damage.path in err.text, err.text
        return err.damage
    return None


def judge(damage: Damage, sector: int) -> None:
    """It is sound just up to the group that holds the bad sector."""
    block = sector // BLOCK * BLOCK
    assert damage.unreadable == block, (damage, sector)
    if sector < BLOCK:
        assert damage.header is None
        return
    good = max(end for end in ONE.ends if end <= block - BLOCK)
    assert damage.good == LogPos(1, "a", good) and damage.digest == ONE.digests[ONE.ends.index(good)].hex()
    assert damage.due > good


async def cure(origin: Origin, sink: Sink, damage: Damage) -> heal.Healed:
    """Heal it from the only other host."""
    far = Far(origin)
    answers = await heal.ask_all(far, "r", heal.start_of(damage), ["b"])  # type: ignore[arg-type]
    (host, end), = heal.candidates(answers, damage)
    return await heal.heal(far, sink.env, "r", damage, host, end)  # type: ignore[arg-type]


def one_round(folder: Path, rng: random.Random) -> str:
    """A bad sector, found and healed."""
    near = folder / "near"
    origin, sink = Origin(folder / "far", ONE, TWO), Sink(near)
    write_logs(near, *((ONE, TWO) if rng.random() < 0.5 else (ONE,)))
    before = {path.name: path.read_bytes() for path in near.iterdir()}
    sector = rng.randrange(0, BLOCK + ONE.end, 512)
    group = rng.choice((0, 0, 6))
    at = LogPos(1, "a", 0) if not group else position(ONE, group)
    digest = ONE.digests[group].hex() if group and rng.random() < 0.5 else ""
    rules = Rules(os.environ["MARS_IO_RULES"])
    Path(f"{rules.path}.sound-{sector}").unlink(missing_ok=True)
    rules.set(f"read {near}/log-000000001-a sector={sector} EIO")
    found = damage_of(sink, at, digest)
    how = "recovery" if found else "examine"
    found = found or recovery.examine(sink.env, position(ONE))
    assert found is not None and (how == "recovery" or BLOCK <= sector < BLOCK + at.pos), (sector, at)
    judge(found, sector)

    assert asyncio.run(cure(origin, sink, found)).replaced == BLOCK
    assert damage_of(sink, at, digest) is None and recovery.examine(sink.env, position(ONE)) is None
    rules.set()
    heal.forget_damaged(str(near))
    assert {path.name: path.read_bytes() for path in near.iterdir()} == before
    return how


def cached(folder: Path) -> None:
    """Recovery could not read a block that others read well: it is written all the same, once."""
    for name in ("near", "far"):
        (folder / name).mkdir()
    origin, sink = Origin(folder / "far", ONE), Sink(folder / "near")
    write_logs(folder / "near", ONE)
    damage = replace(damage_at(sink, 5), unreadable=BLOCK + ONE.ends[5] + BLOCK)
    assert asyncio.run(cure(origin, sink, damage)).replaced == BLOCK
    assert sink.file(1) == bytes(ONE.data)


def damage_at(sink: Sink, group: int) -> Damage:
    """As if the group could not be read."""
    path = os.path.join(sink.directory, position(ONE).log)
    return Damage(path, 1, "a", FileHeader.parse(ONE.header), ONE.ends[group], ONE.digests[group].hex(), group,
                  group, 0, ONE.end)


def main(folder: Path, seed: int) -> None:
    """Rounds of one seed."""
    rng, ways = random.Random(seed), []
    for number in range(ROUNDS):
        place = folder / str(number)
        for name in ("near", "far"):
            (place / name).mkdir(parents=True)
        ways.append(one_round(place, rng))
    assert set(ways) == {"recovery", "examine"}
    print({how: ways.count(how) for how in set(ways)})


if __name__ == "__main__":
    if sys.argv[2] == "cached":
        cached(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]))
