"""The mutants, by rule. A row is (name, rule, file, old text, new text, test); the old text stands once in the file."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`test`: a pytest node id, without parameters if all of them are to run. At least one has to fail."""

    name: str
    rule: int
    file: str
    old: str
    new: str
    test: str


FAULTS = "tests/unit/ext/test_log_faults.py::test_scenario"
MARSLOG = "tests/unit/ext/test_marslog.py"
REPLAY_ENGINE = "tests/unit/ext/test_marsreplay.py"
READER = "tests/unit/log/test_reader.py"
WRITER = "tests/unit/log/test_writer.py"
CHAIN = "tests/unit/log/test_chain.py"
RECOVERY = "tests/unit/volume/test_recovery.py"
PRIMARY = "tests/unit/volume/test_primary.py"
REPLAY = "tests/unit/volume/test_replay.py"

MUTANTS = (
    # ---- 1: groups are answered in order; what an fdatasync covers; no retry
    Mutant("ack-per-group", 1, "ext/commit.h",
           "        if (g->state == MARS_GROUP_WRITING)\n            break;", "",
           f"{FAULTS}[ack_order-1]"),
    Mutant("failed-group-does-not-stop-the-next", 1, "ext/commit.h",
           "mars_log_answer_group(l, g, l->failed);\n        }\n    }\n    mars_log_release(l);\n}\n\n"
           "/* Locked (given up while answering). After a failure",
           "mars_log_answer_group(l, g, 0);\n        }\n    }\n    mars_log_release(l);\n}\n\n"
           "/* Locked (given up while answering). After a failure",
           f"{FAULTS}[ack_fail-1]"),
    Mutant("sync-covers-what-came-later", 1, "ext/flush.h",
           "    if (target > l->durable) {\n        l->durable = target;",
           "    if (target > l->durable) {\n        l->durable = l->written;",
           f"{FAULTS}[flush_shares_nothing-1]"),
    Mutant("flush-answered-at-once", 1, "ext/flush.h",
           "waits = rc == 0 && l->durable < l->written;", "waits = rc == 0 && l->durable < l->written && !l->syncing;",
           f"{FAULTS}[flush_shares_nothing-1]"),
    Mutant("fsync-error-is-tried-again", 1, "ext/flush.h",
           "        mars_log_fail(l, rc, MARS_FAIL_SYNC);\n        return rc;", "        return rc;",
           f"{FAULTS}[sync_fails-1]"),
    Mutant("version-link-ahead-of-durable", 1, "ext/marslog.pyx",
           "return n.durable, n.nr, n.durable - n.base,", "return n.durable, n.nr, n.written - n.base,",
           f"{PRIMARY}::test_published_is_durable_only"),
    # ---- 2: windows end at durable; newest wins only inside; log before disk
    Mutant("window-of-what-is-not-durable", 2, "ext/marsshadow.pyx",
           "            limit = mars_log_settled(&self.log)", "            limit = self.log.written",
           f"{MARSLOG}::test_window_ends_at_durable"),
    Mutant("window-forgets-newer-data", 2, "ext/marsshadow.pyx",
           "rc = shadow_cut(&self.index, x.start, x.end, end)",
           "rc = shadow_cut(&self.index, x.start, x.end, <uint64_t>-1)",
           f"{MARSLOG}::test_window_is_a_prefix"),
    Mutant("window-forgets-too-little", 2, "ext/shadow.h",
           "        if (e->lpos >= below)\n", "        if (e->lpos + 1 >= below)\n",
           "tests/unit/ext/test_shadow.py::test_random_changes"),
    Mutant("oldest-wins-in-a-window", 2, "ext/marsreplay.pyx",
           "        return shadow_put(&self.map, &x)\n",
           "        return shadow_put(&self.map, &x) if self.map.covered == 0 else 0\n",
           f"{REPLAY_ENGINE}::test_windows_make_prefixes"),
    # ---- 3: recovery syncs what it reads; one worker at a time
    Mutant("recovery-reads-unsynced", 3, "marsx/volume/recovery.py",
           '        durable.overwrite(fd, b"", 0, log.path) ', "        ",
           f"{RECOVERY}::test_what_recovery_reads_is_synced"),
    Mutant("window-without-flush", 3, "ext/marsreplay.pyx",
           "            first = mars_fdatasync(fd)", "            first = 0",
           f"{FAULTS}[disk_sync_fails-12]"),
    Mutant("worker-beside-the-dying-one", 3, "marsx/daemon/keeper.py",
           "            if done:\n                self._worker_ended",
           "            if done or self.worker.sock is None:\n                self._worker_ended",
           "tests/unit/daemon/test_keeper.py::test_new_worker_only_after_the_old_one_is_reaped"),
    Mutant("log-shorter-than-the-disk-position", 3, "marsx/volume/recovery.py",
           "    return start % BLOCK == 0 and start <= os.fstat(fd).st_size - BLOCK\n",
           "    return start % BLOCK == 0\n",
           f"{RECOVERY}::test_log_shorter_than_the_disk_position"),
    # ---- 4: where log N ends
    Mutant("ended-log-may-be-shorter", 4, "marsx/volume/recovery.py",
           "        if result.end != log.end:", "        if result.end > log.end:",
           f"{RECOVERY}::test_ended_log_must_be_whole"),
    Mutant("successor-of-other-contents", 4, "marsx/volume/recovery.py",
           "        if log.end_digest and result.digest != log.end_digest:", "        if False:",
           f"{RECOVERY}::test_successor_of_other_contents"),
    Mutant("tail-behind-the-end-is-read", 4, "marsx/volume/recovery.py",
           "start, digest, log.end, group", "start, digest, None, group",
           f"{RECOVERY}::test_valid_groups_behind_the_end"),
    Mutant("name-before-header", 4, "marsx/log/writer.py",
           "        durable.overwrite(fd, block, 0, temp)\n", "        os.pwrite(fd, block, 0)\n",
           f"{WRITER}::test_create_order_and_mode"),
    Mutant("recycled-name-not-durably-gone", 4, "marsx/log/writer.py",
           "    durable.sync_dir(os.path.dirname(temp))\n", "",
           f"{WRITER}::test_recycled_file"),
    Mutant("ended-log-is-not-cut", 4, "marsx/log/writer.py",
           "    os.ftruncate(fd, BLOCK + end_pos)\n", "",
           f"{PRIMARY}::test_rotation"),
    Mutant("rotation-while-groups-are-answered", 4, "ext/flush.h",
           "((l->in_flight || l->written != end) && l->failed == 0)", "(l->in_flight && l->failed == 0)",
           f"{FAULTS}[freeze_waits-4]"),
    Mutant("replay-steps-into-another-history", 4, "marsx/volume/replay.py",
           "        if following.pred_digest != self.digest:", "        if False:",
           f"{REPLAY}::test_successor_of_another_history"),
    Mutant("recovered-log-of-any-end", 4, "ext/marsshadow.pyx",
           "        if rc == 0 and c.e.pos != end:", "        if False:",
           f"{MARSLOG}::test_recovered_log_ends_at_a_group"),
    # ---- 5: bit rot is no torn tail
    Mutant("no-look-beyond", 5, "ext/marsscan.pyx",
           "    if known > e.pos or r.beyond != NO_LIMIT:", "    if known > e.pos:",
           f"{RECOVERY}::test_bit_rot_below_durable"),
    Mutant("links-are-not-believed", 5, "ext/marsscan.pyx",
           "    if known > e.pos or r.beyond != NO_LIMIT:", "    if r.beyond != NO_LIMIT:",
           f"{RECOVERY}::test_known_durable_of_links"),
    Mutant("damage-is-normal", 5, "marsx/log/reader.py",
           'NORMAL_AFTER_CRASH = frozenset({"end", "torn", "foreign"})',
           'NORMAL_AFTER_CRASH = frozenset({"end", "torn", "foreign", "corrupt"})',
           f"{RECOVERY}::test_bit_rot_below_durable"),
    Mutant("header-claims-what-is-not-durable", 5, "ext/commit.h",
           "l->durable > s->base ? l->durable - s->base : 0", "l->written > s->base ? l->written - s->base : 0",
           f"{MARSLOG}::test_durable_in_headers_never_runs_ahead"),
    Mutant("foreign-headers-prove-durability", 5, "ext/format.h",
           "&& memcmp(g->log_id, log_id, 16) == 0 && g->log_nr == log_nr\n           && g->pos == pos",
           "&& g->log_nr == log_nr\n           && g->pos == pos",
           f"{READER}::test_only_own_sound_headers_prove_anything"),
    Mutant("payloads-are-not-checked", 5, "ext/format.h",
           "        if (stored != 0 && mars_crc32c(0, group + at, stored) != table[i].crc)", "        if (0)",
           f"{READER}::test_every_flipped_byte_is_noticed"),
    Mutant("header-crc-is-not-checked", 5, "ext/format.h",
           "    if (!mars_block_sound(block))\n        return MARS_SCAN_CRC;\n    if (memcmp(g->log_id",
           "    if (memcmp(g->log_id",
           f"{READER}::test_every_flipped_byte_is_noticed"),
    Mutant("padding-is-not-checked", 5, "ext/format.h",
           "        if (!mars_is_zero(group + at + stored, span - stored))", "        if (0)",
           f"{READER}::test_every_flipped_byte_is_noticed"),
    Mutant("group-may-reach-over-the-file", 5, "ext/format.h",
           "    if (available < info->length)\n        return MARS_SCAN_SHORT;\n", "",
           "tests/fuzz/test_corpus.py::test_corpus"),
    Mutant("range-sums-wrap", 5, "ext/format.h",
           "return length <= device_size && offset <= device_size - length;", "return offset + length <= device_size;",
           "tests/fuzz/test_corpus.py::test_corpus"),
    Mutant("length-of-a-group-is-believed", 5, "ext/format.h",
           "    if (g->length > MARS_MAX_GROUP || g->length != mars_group_length(table, g->n_records)\n",
           "    if (g->length > MARS_MAX_GROUP\n",
           "tests/fuzz/test_corpus.py::test_corpus"),
    # ---- 6: contents are compared, not positions
    Mutant("chain-is-not-checked", 6, "ext/format.h",
           " || memcmp(g->digest_before, e->digest, 16) != 0)", ")",
           f"{READER}::test_same_log_other_chain_is_a_gap"),
    Mutant("source-does-not-compare-digests", 6, "marsx/daemon/logsource.py",
           "        if start.digest != self._digest_at(log, start.pos):", "        if False:",
           "tests/unit/daemon/test_logsource.py::test_check"),
    Mutant("source-does-not-compare-log-ids", 6, "marsx/daemon/logsource.py",
           "        if start.log_id != log.header.log_id.hex():", "        if False:",
           "tests/unit/daemon/test_logsource.py::test_check"),
    Mutant("hint-is-believed", 6, "marsx/volume/recovery.py",
           "    if digest != reader.digest_behind(fd, log.header, start):", "    if False:",
           f"{RECOVERY}::test_digest_at_the_end_is_confirmed"),
    Mutant("links-by-position-only", 6, "marsx/log/chain.py",
           "    if place_a == place_b:\n        return \"equal\"",
           "    if place_a == place_b or (isinstance(place_a, Point) and isinstance(place_b, Point)\n"
           "                              and place_a.at == place_b.at):\n        return \"equal\"",
           f"{CHAIN}::test_rule_6_equal_position_other_bytes"),
    Mutant("log-of-another-cluster", 6, "marsx/log/record.py",
           '(("cluster", self.uuid, uuid), ("resource"', '(("cluster", uuid, uuid), ("resource"',
           "tests/unit/log/test_log_bytes.py::test_log_under_the_wrong_name"),
    # ---- 7: an empty log is no history; no tolerance
    Mutant("empty-logs-are-history", 7, "marsx/log/chain.py",
           "    while isinstance(place, Point) and not place.is_hole and place.at.pos == 0:", "    while False:",
           f"{CHAIN}::test_rule_7_empty_logs_are_no_history"),
    Mutant("tolerance-of-a-block", 7, "marsx/log/chain.py",
           "    if place_a == place_b:\n        return \"equal\"",
           "    if place_a == place_b or (isinstance(place_a, Point) and isinstance(place_b, Point)\n"
           "                              and place_a.at.log == place_b.at.log\n"
           "                              and abs(place_a.at.pos - place_b.at.pos) <= 4180):\n        return \"equal\"",
           f"{CHAIN}::test_rule_7_no_tolerance"),
    Mutant("marks-make-groups", 7, "ext/format.h",
           "    if (changes == 0) ", "    if (0) ",
           f"{READER}::test_marks_make_no_group_of_their_own"),
    Mutant("empty-rival-counts", 7, "marsx/log/writer.py",
           "        return not is_empty(opened)", "        return True",
           f"{WRITER}::test_rule_7_newest_of_two_with_one_number"),
    # ---- 8: one order
    Mutant("shadow-outside-the-lock", 8, "ext/commit.h",
           "        rc = l->hook.accept(l->hook.arg, r->offset, r->length, mars_groups_place(&l->groups, r->stored), "
           "r->stored,\n                            r->crc);\n",
           "        uint64_t v = mars_groups_place(&l->groups, r->stored);\n"
           "        pthread_mutex_unlock(&l->lock);\n"
           "        rc = l->hook.accept(l->hook.arg, r->offset, r->length, v, r->stored, r->crc);\n"
           "        pthread_mutex_lock(&l->lock);\n",
           "tests/unit/ext/test_log_threads.py::test_writers_flushes_and_changes_of_the_log"),
    Mutant("shadow-keeps-the-older-data", 8, "ext/marsshadow.pyx",
           "    x.crc = crc\n    return shadow_put(<shadow *>index, &x)",
           "    x.crc = crc\n    return shadow_put(<shadow *>index, &x) if length != 512 else 0",
           f"{MARSLOG}::test_logical_contents_are_the_newest"),
    # ---- 9: read-back
    Mutant("read-back-without-crc", 9, "ext/marsshadow.pyx",
           "        if rc == 0 and mars_crc32c(0, scratch + (at - off), p.rec_len) != p.crc:", "        if False:",
           f"{MARSLOG}::test_read_back_checks_the_crc"),
    Mutant("pinned-log-is-dropped", 9, "ext/marsshadow.pyx",
           " and s.one[0].pins == 0 and", " and",
           f"{FAULTS}[read_back_pins-9]"),
    Mutant("log-at-the-disk-position-is-dropped", 9, "ext/marsshadow.pyx",
           "if s.n > 1 and s.one[0].end <= self.writeback and s.one[0].pins == 0 and s.one[0].start.log_nr != current:",
           "if s.n > 1 and s.one[0].pins == 0:",
           f"{MARSLOG}::test_pinned_log_is_not_dropped"),
    Mutant("streams-do-not-hold-logs", 9, "marsx/daemon/housekeeping.py",
           "    for other in (runner.pinned(), worker.start_service.lowest(resource)):",
           "    for other in (worker.start_service.lowest(resource),):",
           "tests/unit/daemon/test_housekeeping.py::test_lowest_needed"),
    # ---- 10: discards read as zeros
    Mutant("discard-is-not-applied", 10, "ext/marsreplay.pyx",
           "            if r.type == MARS_WRITE or r.type == MARS_DISCARD or r.type == MARS_ZERO:",
           "            if r.type == MARS_WRITE or r.type == MARS_ZERO:",
           f"{REPLAY_ENGINE}::test_zeros_are_zeros"),
    Mutant("discard-shows-the-disk", 10, "ext/marsshadow.pyx",
           "            memset(to, 0, p.end - p.start)\n", "",
           f"{MARSLOG}::test_discards_of_everything"),
    Mutant("recovered-discard-is-lost", 10, "ext/marsshadow.pyx",
           "            if r[i].type == MARS_WRITE or r[i].type == MARS_DISCARD or r[i].type == MARS_ZERO:",
           "            if r[i].type == MARS_WRITE or r[i].type == MARS_ZERO:",
           f"{RECOVERY}::test_primary_after_a_crash"),
    # ---- 11: re-sent requests; recovery does not wait for write-back
    Mutant("resent-is-logged-again", 11, "marsx/volume/primary.py",
           "        if same_device:\n            known", "        if False:\n            known",
           f"{RECOVERY}::test_resent_after_recovery"),
    Mutant("unanswered-is-written-back", 11, "ext/log.h",
           "l->groups.first < l->groups.next && oldest->vstart < l->durable", "0",
           f"{MARSLOG}::test_unanswered_stays_behind_the_disk_position"),
    Mutant("any-known-number-is-a-resend", 11, "ext/log.h",
           "    if (!(unique & MARS_RESENT))\n        return 0;\n", "",
           f"{MARSLOG}::test_known_uniques_are_answered_only"),
    # ---- 12: the dirty length
    Mutant("replay-writes-before-it-says-so", 12, "marsx/volume/replay.py",
           "            if not announce(self.env, self.at, new.pos - self.at.pos, self._pause):\n"
           "                return\n",
           "            pair.now.apply(self.disk_fd, self.env.fly, None)\n",
           f"{REPLAY}::test_replay_of_several_logs"),
    Mutant("write-back-does-not-say-so", 12, "marsx/volume/primary.py",
           "        if not announce(self.env, start, after.pos - start.pos, self._pause):\n            return\n", "",
           f"{PRIMARY}::test_publications"),
    Mutant("dirty-length-is-not-durable", 12, "marsx/daemon/facts.py",
           "                durable.sync_links(directory, values)\n", "                pass\n",
           "tests/unit/daemon/test_facts.py::test_dirty_is_durable_before_it_returns"),
)
