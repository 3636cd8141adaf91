"""The mutants that the crash states (tests/crash) must find: proof of their checker. See table.py."""
from __future__ import annotations

from tests.mutants.mutant import PRIMARY_STATES, SECONDARY_STATES, Mutant

APPLY = "        window.apply(self.disk_fd, self.env.fly)\n"
ANNOUNCE = ("        if not announce(self.env, start, after.pos - start.pos, self.pause):\n"
            "            return\n")
REPLAY = ("            if new.pos < end:\n"
          "                pair.begin(self._log.fd, cursor, end)\n"
          "            pair.now.apply(self.disk_fd, self.env.fly, pair.next if pair.cursor else None)\n")
REPLAY_ANNOUNCE = ("            if not announce(self.env, self.at, new.pos - self.at.pos, self._pause):\n"
                   "                return\n")

FOUND_BY_STATES = (
    Mutant("states-answers-per-group", 1, "ext/commit.h",
           "        if (g->state == MARS_GROUP_WRITING)\n            break;\n",
           "        if (g->state == MARS_GROUP_WRITING)\n            continue;\n", PRIMARY_STATES,
           more=(("ext/commit.h",
                  "    if (g->vend < l->written || g->vend > l->groups.appended) {\n"
                  "        mars_log_fail(l, -EIO, MARS_FAIL_INVARIANT);\n",
                  "    if (g->vend < l->written || g->vend > l->groups.appended) {\n"),)),
    Mutant("states-flush-shares-a-running-sync", 1, "ext/flush.h",
           "    if (target > l->durable) {\n",
           "    target = l->written;\n    memcpy(digest, l->written_digest, 16);\n    if (target > l->durable) {\n",
           PRIMARY_STATES),
    Mutant("states-flush-answered-at-once", 1, "ext/flush.h",
           "    waits = rc == 0 && l->durable < l->written;\n",
           "    waits = 0;\n", PRIMARY_STATES),
    Mutant("states-sync-error-is-a-success", 1, "ext/flush.h",
           "    if (rc < 0) {\n        mars_log_fail(l, rc, MARS_FAIL_SYNC);\n        return rc;\n    }\n", "",
           PRIMARY_STATES),
    Mutant("states-write-back-ahead-of-durable", 2, "ext/log.h",
           "oldest->vstart < l->durable)\n        return oldest->vstart;\n    return l->durable;\n",
           "oldest->vstart < l->written)\n        return oldest->vstart;\n    return l->written;\n", PRIMARY_STATES,
           more=(("ext/marsshadow.pyx",
                  "if rc < 0 or end > self.log.durable:",
                  "if rc < 0:"),)),
    Mutant("states-newest-wins-beyond-the-window", 2, "ext/marsshadow.pyx",
           "        if rc == NOT_VALID:\n            raise ValueError(f\"log {c.e.log_nr}",
           "        if rc > 0:\n            skip_newer(self, w)\n"
           "        if rc == NOT_VALID:\n            raise ValueError(f\"log {c.e.log_nr}", PRIMARY_STATES,
           more=(("ext/marsshadow.pyx",
                  "cdef class Volume(Log):",
                  "cdef void skip_newer(Volume self, Window w):\n"
                  "    cdef uint16_t k = 0\n"
                  "    cdef uint64_t end = self.writeback + w.used\n"
                  "    cdef const shadow_extent *x\n"
                  "    pthread_mutex_lock(&self.log.lock)\n"
                  "    cdef uint32_t leaf = shadow_seek(&self.index, 0, &k)\n"
                  "    while leaf != SHADOW_NIL:\n"
                  "        x = &self.index.node[leaf].u.leaf.ext[k]\n"
                  "        if x.lpos >= end:\n"
                  "            shadow_cut(&w.map, x.start, x.end, <uint64_t>-1)\n"
                  "        leaf = shadow_step(&self.index, leaf, &k)\n"
                  "    pthread_mutex_unlock(&self.log.lock)\n\n\n"
                  "cdef class Volume(Log):"),)),
    Mutant("states-recovery-believes-the-cache", 3, "marsx/volume/recovery.py",
           "        durable.overwrite(fd, b\"\", 0, log.path) ",
           "        pass  ", SECONDARY_STATES),
    Mutant("states-header-not-durable", 4, "marsx/log/writer.py",
           "        durable.overwrite(fd, block, 0, temp)\n",
           "        os.pwrite(fd, block, 0)\n", PRIMARY_STATES),
    Mutant("states-name-not-durable", 4, "marsx/log/writer.py",
           "        os.unlink(temp)\n        durable.sync_dir(directory)\n",
           "        os.unlink(temp)\n", PRIMARY_STATES),
    Mutant("states-next-log-before-the-last-is-durable", 4, "ext/flush.h",
           "    mars_log_sync_all(l);\n    pthread_mutex_lock(&l->lock);\n    while (l->syncing &&",
           "    pthread_mutex_lock(&l->lock);\n    l->durable = l->written;\n    while (l->syncing &&", PRIMARY_STATES),
    Mutant("states-groups-do-not-say-what-is-durable", 5, "ext/commit.h",
           "l->durable > s->base ? l->durable - s->base : 0, l->lamport_ns",
           "0, l->lamport_ns", PRIMARY_STATES),
    Mutant("states-scan-does-not-look-on", 5, "marsx/volume/recovery.py",
           "look=None if log.producer == env.host else 0",
           "look=0", PRIMARY_STATES),
    Mutant("states-links-are-no-proof", 5, "marsx/volume/recovery.py",
           "known = known_durable(log.nr, log.producer) if log.end is None else 0",
           "known = 0", SECONDARY_STATES),
    Mutant("states-position-not-durable-before-deletion", 9, "marsx/daemon/housekeeping.py",
           "        store.make_durable([paths.replay(resource, host)])\n",
           "        pass\n", PRIMARY_STATES),
    Mutant("states-dirty-after-the-write", 12, "marsx/volume/primary.py",
           ANNOUNCE + APPLY, APPLY + ANNOUNCE, PRIMARY_STATES),
    Mutant("states-dirty-not-durable", 12, "marsx/daemon/facts.py",
           "self._position(at, length), make_durable=True",
           "self._position(at, length)", PRIMARY_STATES),
    Mutant("states-dirty-forgotten-by-a-restart", 12, "marsx/daemon/facts.py",
           "            length = max(length, old.pos.pos + old.length - at.pos)\n",
           "            pass\n", PRIMARY_STATES),
    Mutant("states-replay-writes-before-dirty", 12, "marsx/volume/replay.py",
           REPLAY_ANNOUNCE + REPLAY, REPLAY + REPLAY_ANNOUNCE, SECONDARY_STATES),
    Mutant("states-position-before-the-write", 12, "marsx/volume/primary.py",
           APPLY + "        volume.finish_window(window)\n"
           "        self.env.facts.replayed(LogPos(after.nr, start.producer, after.pos), after.digest.hex())\n",
           "        self.env.facts.replayed(LogPos(after.nr, start.producer, after.pos), after.digest.hex())\n"
           + APPLY +
           "        volume.finish_window(window)\n", PRIMARY_STATES),
    Mutant("states-position-before-the-flush", 12, "ext/marsreplay.pyx",
           "            first = mars_fdatasync(fd)\n",
           "            first = 0\n", PRIMARY_STATES),
    Mutant("states-replay-position-before-the-flush", 12, "ext/marsreplay.pyx",
           "            first = mars_fdatasync(fd)\n",
           "            first = 0\n", SECONDARY_STATES),
    Mutant("states-version-link-ahead", 4, "ext/marslog.pyx",
           "        return n.durable, n.nr, n.durable - n.base, (<const char *>n.digest)[:16]\n",
           "        return n.written, n.nr, n.written - n.base, (<const char *>n.digest)[:16]\n",
           PRIMARY_STATES),
    Mutant("states-fetched-is-not-synced", 0, "marsx/daemon/logcopy.py",
           "        durable.overwrite(self._fd, b\"\", 0, str(self.at.log))\n",
           "", SECONDARY_STATES),
    Mutant("states-replay-position-of-another-log", 4, "marsx/volume/replay.py",
           "            self.at, self.digest = following.start, following.digest0\n",
           "            self.at, self.digest = LogPos(following.nr, following.producer, 4096), following.digest0\n",
           SECONDARY_STATES),
)
