"""The mutants of the rules that speak of more than one host (14 to 29; more of sync: sync_rules.py). See table.py."""
from __future__ import annotations

from tests.mutants.mutant import Mutant

UNIT = "tests/unit"
SYNC = f"{UNIT}/peer/test_sync.py"
SPANS = f"{UNIT}/daemon/test_spans.py"
PLAN = f"{UNIT}/daemon/test_plan.py::test_plan"
ROLES = f"{UNIT}/admin/test_roles.py"
CLUSTERS = "tests/sim/test_cluster.py::test_cluster"

RULES_OF_MANY_HOSTS = (
    # ---- 7: what becomes of an empty log
    Mutant("withdrawn-under-a-new-replica", 7, "marsx/volume/recovery.py", " or header.name == env.begun():", ":",
           f"{UNIT}/volume/test_recovery.py::test_only_what_is_empty_for_sure_is_withdrawn"),
    Mutant("withdrawn-under-a-new-replica-by-sim", 7, "marsx/volume/recovery.py", " or header.name == env.begun():",
           ":", CLUSTERS),
    Mutant("log-before-an-empty-one-goes", 7, "marsx/daemon/housekeeping.py",
           "        needed.append(_end_of_history(view, resource, worker.site.host, logs[-1].nr))",
           "        needed.append(logs[-1].nr)",
           f"{UNIT}/daemon/test_housekeeping.py::test_the_log_before_an_empty_one_of_another_host_stays"),
    Mutant("waits-for-what-was-withdrawn", 7, "marsx/daemon/comeback.py",
           " and time.monotonic() <= self._ask_after:", ":",
           f"{UNIT}/daemon/test_comeback.py::test_who_had_more_may_have_it_no_longer"),
    # ---- 14: syncpos
    Mutant("syncpos-is-not-durable", 14, "marsx/daemon/spans.py",
           "[(paths.syncpos(self._resource, self._host), value)], make_durable=True)",
           "[(paths.syncpos(self._resource, self._host), value)], make_durable=False)",
           f"{SPANS}::test_publications_of_a_sink_are_in_the_tree_and_durable"),
    Mutant("syncpos-by-number-only", 14, "marsx/tree/view.py",
           "replay.pos.order >= syncpos.pos.order\n"
           "                and self.in_history(resource, host, syncpos) is True)",
           "replay.pos.order >= syncpos.pos.order)",
           f"{UNIT}/tree/test_view.py::test_rule_14_consistent_needs_syncpos_in_the_own_history"),
    Mutant("consistent-before-syncpos", 14, "marsx/tree/view.py",
           "syncpos is not None and replay.pos.order >= syncpos.pos.order\n", "syncpos is not None\n",
           f"{UNIT}/tree/test_view.py::test_rule_14_consistent_needs_syncpos_in_the_own_history"),
    Mutant("force-makes-half-a-disk-a-device", 0, "marsx/daemon/plan.py",
           "            and view.want_primary(resource, host).startswith(paths.IGNORE_SYNC))", "            )", PLAN),
    # ---- 15: the bound, and what is counted when
    Mutant("replay-begins-without-the-bound", 15, "marsx/daemon/spans.py",
           "        self._replayer = replayer\n        replayer.set_bound(self.bound)\n",
           "        self._replayer = replayer\n",
           f"{SPANS}::test_the_bound_holds_for_replay_that_begins_later"),
    Mutant("counted-before-the-flush", 15, "marsx/peer/sync.py",
           "        await run_blocking(self._executor, self._sink.flush)\n        await run_blocking(self._executor, "
           "self._sink.put_syncstatus",
           "        await run_blocking(self._executor, self._sink.put_syncstatus",
           f"{SYNC}::test_order_of_a_run"),
    # ---- 16: a member without replay link keeps the logs
    Mutant("a-new-member-holds-nothing", 16, "marsx/tree/view.py",
           "        if replay is None:\n            return 0\n        after =",
           "        if replay is None:\n            return 1 << 59\n        after =",
           f"{UNIT}/daemon/test_housekeeping.py::test_a_member_without_replay_link_blocks"),
    # ---- 17: verify
    Mutant("touched-blocks-differ", 17, "marsx/peer/verify.py",
           "(again if marks[(at - start) // block] else sure).append(part)", "sure.append(part)",
           f"{UNIT}/peer/test_verify.py::test_touched_blocks_are_asked_again_and_then_at_a_standstill"),
    # ---- 18: the right to write is granted
    Mutant("no-grant-is-needed", 18, "marsx/daemon/plan.py",
           '    return False, f"{right.host} has not granted the right to write to this host"', '    return True, ""',
           PLAN),
    Mutant("granted-from-anywhere", 18, "marsx/daemon/plan.py",
           "or local.hold or not _at_the_end(right, local):", "or local.hold:", PLAN),
    Mutant("any-empty-log-counts", 18, "marsx/tree/roles.py",
           "    return own is not None and own.end.pos.producer == producer", "    return own is not None",
           f"{UNIT}/tree/test_roles.py::test_holder"),
    # ---- 19: facts in order
    Mutant("a-gap-is-no-gap", 19, "marsx/daemon/exchange.py",
           "                if seq != expected:", "                if seq < expected:",
           f"{UNIT}/daemon/test_exchange.py::test_a_gap_is_refused"),
    # ---- 20: the device is gone for sure
    Mutant("device-is-not-looked-at-again", 20, "marsx/device/loop.py",
           "    fd, now = _open_status(number)\n    if fd < 0:\n        return True\n    try:\n"
           "        if now is None or not is_ours(now):\n            return True\n        if not keep_autoclear:",
           "    return True\n    fd, now = _open_status(number)\n    try:\n        if not keep_autoclear:",
           f"{UNIT}/device/test_loop.py::test_release_lets_the_last_close_decide"),
    # ---- 21: roles are durable
    Mutant("a-role-that-is-not-durable-counts", 21, "marsx/daemon/plan.py",
           "    if not local.role_durable:", "    if False:", PLAN),
    # ---- 22: own facts that come back
    Mutant("a-link-put-back-is-lost-memory", 22, "marsx/daemon/comeback.py",
           "        return after.previous if after is not None and after.previous is not None else own.end if own else "
           "None", "        return own.end if own else None",
           f"{UNIT}/daemon/test_comeback.py::test_a_link_that_a_power_cut_put_back"),
    Mutant("any-memory-is-the-own", 22, "marsx/daemon/comeback.py",
           "            return at.nr == end.nr and at.producer == end.producer and at.pos <= end.pos",
           "            return True",
           f"{UNIT}/daemon/test_comeback.py::test_what_others_remember"),
    Mutant("an-older-state-goes-on", 22, "marsx/daemon/comeback.py",
           "        if producer != self.site.host or (nr, producer) in here:", "        if True:",
           f"{UNIT}/daemon/test_comeback.py::test_a_newer_own_log_that_is_not_here_is_an_older_state"),
    # ---- 23: force with the shorter copy
    Mutant("force-asks-nobody", 23, "marsx/admin/roles.py",
           "        if more:\n            raise PreconditionError(\n                f\"{resource}: {other} has more",
           "        if False:\n            raise PreconditionError(\n                f\"{resource}: {other} has more",
           f"{ROLES}::test_force_does_not_throw_away_what_another_has"),
    # ---- 24: a rollback is weak
    Mutant("rollback-is-strong", 24, "marsx/admin/roles.py",
           "        stamp = self._none.stamp + 1\n", "        stamp = None\n",
           f"{ROLES}::test_time_out_takes_back_as_weakly_as_it_gave"),
    Mutant("rollback-over-a-genuine-primary", 24, "marsx/admin/roles.py",
           "stamp=stamp, expect=self._none)", "stamp=stamp + 10**12)",
           f"{ROLES}::test_a_genuine_primary_is_not_overwritten"),
    # ---- 25: clocks
    Mutant("any-stamp-is-legal", 25, "marsx/base/lamport.py",
           "        return stamp <= max(self._last, self._trusted) or stamp - self._reference() <= self.max_future",
           "        return True",
           f"{UNIT}/base/test_lamport.py::test_rule_25_stamp_far_ahead_is_illegal_and_limit_is_the_guard"),
    # ---- 26: membership has incarnations
    Mutant("a-life-that-is-over-counts", 26, "marsx/tree/guard.py",
           "    if removed is not None and removed[1] != DELETED and (joined is None or removed[1] == joined[1]):\n"
           "        return True\n", "",
           f"{UNIT}/tree/test_guard.py::test_rule_26_incarnations"),
    Mutant("anybody-speaks-for-anybody", 26, "marsx/tree/guard.py",
           "    if name.host != sender and name.host not in relay_ok:", "    if False:",
           f"{UNIT}/tree/test_guard.py::test_rule_22_26_who_may_say_what"),
    # ---- 28: /mars is full
    Mutant("a-fact-without-room-counts", 28, "marsx/daemon/facts.py",
           "            if unwritten:\n                raise NoRoomError(",
           "            if False:\n                raise NoRoomError(",
           f"{UNIT}/daemon/test_facts.py::test_no_space_is_no_success"),
    # ---- 29: what later versions may add
    Mutant("must-is-not-understood", 29, "ext/format.h",
           "        return (r->flags & MARS_RECORD_MUST) ? MARS_SCAN_UNKNOWN : MARS_SCAN_OK;",
           "        return MARS_SCAN_OK;",
           f"{UNIT}/log/test_reader.py::test_record_the_reader_must_understand"),
    # ---- 0: no false alarm about a disk (design 3.14)
    Mutant("window-in-part-is-a-witness", 0, "marsx/volume/fingerprint.py",
           "            if kind not in _QUIET:\n                covered.add(offset, offset + size)\n",
           "            pass\n",
           f"{UNIT}/volume/test_fingerprint.py::test_a_window_that_may_be_there_in_part"),
    Mutant("window-in-part-is-a-witness-by-sim", 0, "marsx/volume/fingerprint.py",
           "            if kind not in _QUIET:\n                covered.add(offset, offset + size)\n",
           "            pass\n",
           CLUSTERS),
    Mutant("overwritten-block-is-a-witness", 0, "marsx/volume/fingerprint.py",
           "        covered.add(offset, offset + length)\n        if len", "        if len",
           f"{UNIT}/volume/test_fingerprint.py::test_last_writes_are_on_the_disk"),
    Mutant("seal-of-a-disk-in-use", 0, "marsx/daemon/seal.py",
           "            self._break_durably(state)\n        else:\n            self.drop()\n",
           "            self._break_durably(state)\n", f"{UNIT}/daemon/test_seal.py::test_nobody_touched_it"),
    Mutant("half-a-decision", 0, "marsx/daemon/seal.py",
           "        if self.accepted and view.designated(runner.resource) != runner.site.host", "        if False",
           f"{UNIT}/daemon/test_seal.py::test_accepted"),
    # ---- 0: damaged entries of the tree
    Mutant("deleted-link-is-believed", 0, "marsx/tree/store.py", "                if self.heals:\n",
           "                if False:\n", f"{UNIT}/tree/test_store.py::test_what_vanished_comes_back_while_marsd_runs"),
    # ---- 21, 22, 26: who is who
    Mutant("outcast-begins-a-log", 21, "marsx/daemon/comeback.py",
           "        if outcast := self.site.outcast():\n            return outcast, \"\"\n", "",
           f"{UNIT}/daemon/test_identity.py::test_an_outcast_begins_no_log"),
    Mutant("copy-of-a-living-host", 22, "marsx/daemon/identity.py",
           "        if real and real != peer.incarnation and peer.address != address:", "        if False:",
           f"{UNIT}/daemon/test_identity.py::test_a_copy_of_a_living_host_is_refused"),
    Mutant("copy-that-came-first-stays", 22, "marsx/daemon/identity.py",
           "                    link.abort(err.reason, err.text)", "                    pass",
           f"{UNIT}/daemon/test_identity.py::test_a_copy_that_came_first_is_ended"),
    Mutant("starts-under-any-name", 22, "marsx/peer/tls.py", "    if name != host:\n", "    if not name:\n",
           f"{UNIT}/peer/test_tls.py::test_a_host_of_another_name_does_not_start"),
    Mutant("removed-host-comes-in", 26, "marsx/daemon/identity.py",
           "        if removed and removed == (member or removed):", "        if False:",
           f"{UNIT}/daemon/test_identity.py::test_a_removed_host_is_named"),
)
