"""Mutants of rules 27 and 28: a full /mars. Each is found by a test that names the rule."""
from __future__ import annotations

from tests.mutants.mutant import Mutant

GAP = "tests/unit/volume/test_gap.py"
DROPS = "tests/unit/daemon/test_drops.py"
EMERGENCY = "tests/unit/daemon/test_emergency.py"

SPACE_RULES = (
    Mutant("data-without-its-bit", 27, "ext/direct.h",
           "int rc = mars_map_mark(&d->map, off, length);", "int rc = 0;", f"{GAP}::test_bit_before_data"),
    Mutant("accepted-and-never-written", 27, "ext/direct.h",
           "        rc = mars_direct_put_group(l, d, g);", "        rc = 0;", f"{GAP}::test_accepted_and_never_logged"),
    Mutant("past-the-log-before-the-drain", 27, "marsx/volume/emergency.py",
           "            _all_on_disk(primary, end, digest)\n", "", f"{GAP}::test_nothing_of_the_log_is_left_behind"),
    Mutant("gap-without-a-durable-position", 27, "marsx/volume/emergency.py",
           "    if not announce(primary.env, end, 0, primary.pause):\n"
           "        raise MarsError(\"the volume is being stopped\")\n", "",
           f"{GAP}::test_order_of_entering"),
    Mutant("log-goes-on-over-an-open-map", 27, "marsx/volume/emergency.py",
           "            gap.close(changed.path)\n", "", f"{GAP}::test_closed_is_for_ever"),
    Mutant("log-goes-on-unprepared", 27, "marsx/volume/emergency.py",
           "        if to_go_on:\n            prepare(primary)\n", "",
           f"{GAP}::test_the_next_gap_is_prepared_before_the_log_goes_on"),
    Mutant("a-try-uses-the-map-up", 27, "marsx/volume/gap.py", "        _write_header(spare, found.header)\n", "",
           f"{GAP}::test_a_try_that_fails_uses_nothing_up"),
    Mutant("direct-flush-of-nothing", 27, "ext/direct.h",
           "    int rc = mars_fdatasync(d->disk_fd);\n    pthread_mutex_lock(&l->lock);\n    d->flushes++;",
           "    int rc = 0;\n    pthread_mutex_lock(&l->lock);\n    d->flushes++;",
           f"{GAP}::test_a_flush_reaches_the_disk"),
    Mutant("crash-forgets-the-gap", 27, "marsx/volume/primary.py",
           "changed = emergency.is_in_between(logs[-1], self.env.directory) if logs else None", "changed = None",
           f"{GAP}::test_crash_past_the_log"),
    Mutant("position-before-the-gap", 27, "ext/marsdirect.pyx",
           "        if self.writeback != self.log.durable or self.log.groups.appended != self.log.durable:\n",
           "        if False:\n", f"{GAP}::test_position_before_the_gap_is_refused"),
    Mutant("damaged-map-is-believed", 27, "marsx/volume/gap.py",
           "        if (len(sector) != step or SECTOR.unpack_from(sector) !=\n"
           "                (marssum.crc32c(sector[4:]), number, header.map_id)):\n",
           "        if len(sector) != step:\n", f"{GAP}::test_lost_map"),
    Mutant("gap-log-is-withdrawn", 27, "marsx/volume/recovery.py",
           "    if header.pred is None or header.gap_id != record.NO_ID or ", "    if header.pred is None or ",
           f"{GAP}::test_a_gap_is_history"),
    Mutant("open-map-is-given-away", 27, "marsx/daemon/gaps.py",
           "    if changed is None or changed.header.state != gap.CLOSED:", "    if changed is None:",
           f"{DROPS}::test_across_a_gap"),
    Mutant("dropped-without-its-regions", 27, "marsx/daemon/drops.py",
           "        dropped.regions.add(fields[4], fields[5])", "        pass",
           f"{DROPS}::test_a_member_comes_back"),
    Mutant("set-for-any-log", 27, "marsx/daemon/drops.py",
           "(nr, producer, known) == (at.nr, at.producer, log_id)", "(nr, producer) == (at.nr, at.producer)",
           f"{DROPS}::test_a_member_comes_back"),
    Mutant("set-forgets-what-was-due", 27, "marsx/daemon/gaps.py",
           "        found.unite(old, status)\n", "        pass\n", f"{DROPS}::test_what_is_still_due"),
    Mutant("sync-before-crossing", 27, "marsx/daemon/spans.py",
           "        if fetched.at.nr < max((gap_log.nr for gap_log in self._gaps()), default=0):\n",
           "        if False:\n",
           f"{EMERGENCY}::test_nothing_past_the_log_is_given_away"),
    Mutant("spans-of-what-went-past-the-log", 27, "marsx/daemon/spans.py",
           "        if epoch % 2 or epoch != self._epoch:\n", "        if False:\n",
           f"{EMERGENCY}::test_nothing_past_the_log_is_given_away"),
    Mutant("writers-stop-and-go", 0, "ext/commit.h",
           "    gap = gap > room_gap ? gap : room_gap;\n", "    gap = 0 * room_gap;\n",
           "tests/device/test_slow_disk.py::test_the_limit_of_the_shadow_holds"),
    Mutant("ballast-stays", 28, "marsx/daemon/emergency.py",
           "        if \"free-ballast\" in due or site.store.problems:", "        if False:",
           f"{EMERGENCY}::test_the_ballast_is_there_for_the_facts"),
)
