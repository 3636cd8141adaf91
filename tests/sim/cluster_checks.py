"""What must hold in every history of `cluster_world`."""
from __future__ import annotations

import os

from marsx.admin import state
from marsx.base.position import log_name
from marsx.log import record
from marsx.log.record import BLOCK
from marsx.tree.roles import right_holder
from tests.sim.cluster_chaos import Chaos
from tests.sim.cluster_host import RES, Host
from tests.sim.cluster_volume import Point


class Checks(Chaos):
    """See the module."""

    def point(self, host: Host) -> Point | None:
        """Where the own history of this host ends."""
        end = host.runner.stock.end
        return self.truth.points.get(end.point[1]) if end is not None else None

    def check_bytes(self, host: Host) -> None:
        """Equal position, equal bytes."""
        one, view = host.runner.consumer, self.view(host)
        if one is None or one.at is None or not one.digest or not view.disk_consistent(RES, host.name):
            return
        replay = view.replay(RES, host.name)
        if replay is None or replay.pos != one.at or one.replayer is not None and one.replayer._busy:
            return
        want = list(self.truth.image(self.truth.points[one.digest]))
        if host.blocks() != want:
            raise self.broken(f"{host.name} is consistent at {one.at}, but its disk has {host.blocks()}, not {want}")

    def check_verdict(self) -> None:
        """All say the same about a split brain, and it is true."""
        said = {host.name: state.split_brain(host.site.view(), RES) for host in self.hosts.values()}
        if len(set(said.values())) > 1:
            raise self.broken(f"verdicts differ: {said}")
        if any(host.runner.trouble for host in self.hosts.values()):
            return  # what it has written is not known to itself
        parted = self.parted_pairs()
        self.parted += bool(parted)
        if bool(parted) != bool(said["a"]):
            raise self.broken(f"histories have parted: {parted}, said is {said['a']!r}")

    def parted_pairs(self) -> list[tuple[str, str]]:
        """Hosts whose histories have parted."""
        ends = {host.name: self.point(host) for host in self.hosts.values()}
        return [(a, b) for a in ends for b in ends if a < b and self.truth.parted(ends[a], ends[b])]

    def check_writes(self, end: Point | None) -> None:
        """What was flushed is there."""
        for log, pos in self.flushed.items():
            if not self.truth.holds(end, (log, pos)):
                raise self.broken(f"flushed writes of {self.truth.logs[log].header.name} up to {pos} are lost")

    def check_leftovers(self, end: Point | None) -> None:
        """No log, no link of another history is left in the live tree."""
        for host in self.hosts.values():
            view = host.site.view()
            if verdict := state.split_brain(view, RES):
                raise self.broken(f"{host.name} still tells of a split brain: {verdict}")
            for nr, text in view.version_texts(RES).get(host.name, {}).items():
                point = self.truth.points.get(text.partition(",")[0])
                if not self.truth.holds(end, point):
                    raise self.broken(f"version link {nr} of {host.name} is of another history: {text}")
            for log in host.store.log_files(RES):
                with open(os.path.join(host.logs, log_name(log.nr, log.producer)), "rb") as file:
                    block = file.read(BLOCK)
                if record.is_rotten(block):
                    continue  # nobody needed it since
                truth = self.truth.logs[record.FileHeader.parse(block).log_id]
                if truth.groups and not self.truth.holds(end, (truth.header.log_id, min(BLOCK, log.size - BLOCK))):
                    raise self.broken(f"{truth.header.name} of another history is still on {host.name}")

    def why(self, host: Host) -> str:
        """What it says."""
        return f"{host.name}: {host.site.view().messages(RES, host.name)}"

    def picture(self) -> str:
        """Of all hosts."""
        lines = []
        for host in self.hosts.values():
            view, one = host.site.view(), host.runner.consumer
            lines.append(f"{host.name}: up {host.up}, primary {host.volume is not None}, {self.why(host)}, trouble "
                         f"{host.runner.trouble!r}, point {self.point(host)}, at {one.at if one else None}, "
                         f"fetch {one.fetch.running if one else None} {one.fetch.key if one else None}, "
                         f"syncstatus {view.syncstatus(RES, host.name)}, syncpos {view.syncpos(RES, host.name)}, "
                         f"replay {view.replay(RES, host.name)}, logs {host.store.log_files(RES)}, "
                         f"right {right_holder(view, RES)}, designated {view.designated(RES)}, "
                         f"granted {view.granted(RES, host.name)}")
            lines += [f"    version {nr} of {host.name}: {text}" for nr, text in sorted(
                view.version_texts(RES).get(host.name, {}).items())]
        return "\n".join(lines)

    def is_half(self, host: Host) -> bool:
        """Does it take more than force to make this disk a device?"""
        view = self.view(host)
        return not view.consistent(RES, host.name) or "err-force" in view.messages(RES, host.name)

    def follows(self, host: Host, winner: Host) -> bool:
        """Is it in sync, and at the end of the winner's log?"""
        view = host.site.view()
        return (view.consistent(RES, host.name) and not host.runner.trouble
                and self.truth.canonical(self.point(host)) == self.truth.canonical(self.point(winner)))
