"""Mutants of rules 13 to 17: full sync and verify. `tests/sim` has more of them, as broken sources and targets."""
from __future__ import annotations

from tests.mutants.mutant import Mutant

SYNC, VERIFY, PARTS = "marsx/peer/sync.py", "marsx/peer/verify.py", "marsx/peer/syncparts.py"
TEST = "tests/unit/peer/test_sync.py"
SIM_SYNC = "tests/sim/test_sync_rules.py::test_consistent_means_consistent"
SIM_VERIFY = "tests/sim/test_verify_rules.py::test_no_false_difference_and_none_missed"

SYNC_RULES = (
    # ---- 13: an answer leaves when all that it shows is durable
    Mutant("answer-before-it-is-durable", 13, SYNC,
           "        point = await self.source.durable(seen)\n", "        point = await self.source.durable(0)\n",
           f"{TEST}::test_an_answer_is_held_until_what_it_shows_is_durable"),
    Mutant("answer-before-it-is-durable-found-by-search", 13, SYNC,
           "        point = await self.source.durable(seen)\n", "        point = await self.source.durable(0)\n",
           f"{SIM_SYNC}[source power cuts]"),
    Mutant("appended-is-noted-before-the-read", 13, SYNC,
           "        view = self._contents(request.ranges, buf)\n"
           "        seen = self.source.appended()  # rule 13: asked for after the read\n",
           "        seen = self.source.appended()\n        view = self._contents(request.ranges, buf)\n",
           f"{TEST}::test_appended_is_asked_for_after_the_read"),
    # ---- 14: syncpos
    Mutant("span-is-written-before-syncpos", 14, SYNC,
           "            await self._high.reach(answer.point)\n            await self._write(data, zero, body)\n",
           "            await self._write(data, zero, body)\n            await self._high.reach(answer.point)\n",
           f"{SIM_SYNC}[faked]"),
    Mutant("equal-spans-raise-no-syncpos", 14, SYNC,
           "            await self._high.reach(answer.point)\n            data, zero = spanio.differ_split",
           "            data, zero = spanio.differ_split",
           f"{TEST}::test_an_equal_span_raises_syncpos_too"),
    Mutant("forks-below-syncpos-are-not-seen", 14, PARTS,
           "    return syncpos is not None and tip is not None and tip.at >= syncpos.at and in_history is False\n",
           "    return False\n", "tests/unit/peer/test_syncparts.py::test_a_finished_sync_can_become_stale"),
    Mutant("answers-leave-in-any-order", 14, SYNC,
           "            await self._link.room()\n        point = await self.source.durable(seen)\n",
           "            pass\n        point = await self.source.durable(seen)\n"
           "        await asyncio.sleep(0.05 * (bytes(body[:1]) > b'a'))\n",
           f"{TEST}::test_answers_leave_in_the_order_of_their_positions"),
    # ---- 15: bounds, late answers, progress
    Mutant("replay-knows-no-bound", 15, SYNC,
           "            while not self._sink.set_bound(fetched):", "            while False:",
           f"{TEST}::test_order_of_a_run"),
    Mutant("replay-knows-no-bound-found-by-search", 15, SYNC,
           "            while not self._sink.set_bound(fetched):", "            while False:",
           f"{SIM_SYNC}[pauses]", ((SYNC, "            self._sink.set_bound(lowest)\n", "            pass\n"),)),
    Mutant("progress-without-flush", 15, SYNC,
           "        await run_blocking(self._executor, self._sink.flush)\n"
           "        await run_blocking(self._executor, self._sink.put_syncstatus",
           "        await run_blocking(self._executor, self._sink.put_syncstatus",
           f"{TEST}::test_progress_is_saved_now_and_then_after_a_flush"),
    Mutant("older-than-fetched-is-taken", 15, PARTS,
           "    if at < fetched:\n", "    if False:\n",
           "tests/unit/peer/test_sync_hostile.py::test_a_source_that_is_behind_the_request_says_so"),
    Mutant("progress-over-a-gap", 15, PARTS,
           "        self._later[offset] = length\n", "        self.end = max(self.end, offset + length)\n",
           "tests/unit/peer/test_syncparts.py::test_a_prefix_ends_at_the_first_gap"),
    # ---- 16: where a replica begins
    Mutant("granted-starts-hold-no-logs", 16, "marsx/daemon/housekeeping.py",
           "    for other in (runner.pinned(), worker.start_service.lowest(resource)):",
           "    for other in (runner.pinned(),):",
           "tests/unit/daemon/test_housekeeping.py::test_lowest_needed"),
    Mutant("sync-goes-on-without-its-log", 16, PARTS,
           "    if not logs_there:\n", "    if False:\n",
           "tests/unit/peer/test_syncparts.py::test_where_to_resume"),
    # ---- 17: verify
    Mutant("low-end-is-noted-after-the-read", 17, VERIFY,
           "            more = {\"low\": syncparts.point_fields(low)}\n",
           "            low = await self.source.durable(seen)\n"
           "            more = {\"low\": syncparts.point_fields(low)}\n",
           f"{SIM_VERIFY}[hot]"),
    Mutant("target-reads-too-early", 17, VERIFY,
           "            await self._sink.reached(answer.point.at)\n            mine, upto =",
           "            mine, upto =",
           f"{SIM_VERIFY}[usual]"),
    Mutant("window-is-noted-before-the-read", 17, VERIFY,
           "        return mine, self._sink.begun()\n", "        return mine, upto\n", f"{SIM_VERIFY}[usual]",
           ((VERIFY, "        mine = own_digests(self._sink.read, ranges, self._shape.block",
             "        upto = self._sink.begun()\n"
             "        mine = own_digests(self._sink.read, ranges, self._shape.block"),)),
    Mutant("touched-blocks-differ-found-by-search", 17, VERIFY,
           "(again if marks[(at - start) // block] else sure)", "sure", f"{SIM_VERIFY}[usual]"),
)
