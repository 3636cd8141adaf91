"""The mutants of what administrators ask for: merge-cluster, set-replay, resize, the end of marsd. See table.py."""
from __future__ import annotations

from tests.mutants.mutant import Mutant

UNIT = "tests/unit"
MERGE = f"{UNIT}/admin/test_merge.py"
COMMANDS = f"{UNIT}/daemon/test_commands.py"
GROWTH = f"{UNIT}/daemon/test_growth.py"

ADMIN_RULES = (
    # ---- merge-cluster: two things of one name, logs keep their uuid, the uuid comes last
    Mutant("merge-gives-resources-of-others-our-uuid", 26, "marsx/admin/merge.py",
           "if res not in theirs.resources and not view.get", "if not view.get",
           f"{MERGE}::test_a_merge_that_was_killed_is_given_again"),
    Mutant("merge-leaves-facts-of-the-old-life", 26, "marsx/admin/merge.py",
           "ctx.store.put_many(facts, durable=True, restamp=True)", "ctx.store.put_many(facts, durable=True)",
           f"{MERGE}::test_a_merge_that_was_killed_is_given_again"),
    Mutant("merge-writes-the-uuid-too-early", 26, "marsx/admin/merge.py",
           "    cluster.take_tree(ctx, taken, ip)\n",
           "    cluster.take_uuid(ctx, taken)\n    cluster.take_tree(ctx, taken, ip)\n",
           f"{MERGE}::test_a_merge_that_was_killed_is_given_again"),
    Mutant("merge-takes-another-life-for-a-copy", 26, "marsx/admin/merge.py",
           "        if is_other or there.get(entry.rel, 0) < entry.stamp:",
           "        if there.get(entry.rel, 0) < entry.stamp:", f"{MERGE}::test_another_thing_is_no_copy"),
    Mutant("merge-takes-what-is-only-here-for-a-copy", 26, "marsx/admin/merge.py",
           "        if is_other or there.get(entry.rel, 0) < entry.stamp:", "        if is_other:",
           f"{MERGE}::test_another_thing_is_no_copy"),
    Mutant("merge-takes-names-for-things", 0, "marsx/admin/merge.py",
           "if not any(own and own == other for own, other in ids):", "if False:",
           f"{MERGE}::test_one_name_for_two_things"),
    # ---- set-replay goes back only, and the old position is the bound before the new one counts
    Mutant("replay-again-without-a-bound", 14, "marsx/daemon/commands.py",
           "    if bound is None or bound.pos.order < at.order:\n", "    if False:\n",
           f"{COMMANDS}::test_replaying_again_keeps_the_old_position_as_bound"),
    Mutant("replay-again-before-its-bound", 14, "marsx/daemon/commands.py",
           "links.insert(0, (paths.syncpos", "links.insert(1, (paths.syncpos",
           f"{COMMANDS}::test_replaying_again_keeps_the_old_position_as_bound"),
    Mutant("replay-leaves-writes-out", 0, "marsx/daemon/commands.py",
           "    if {log.nr for log in logs} != set(range(nr, at.nr + 1)) or len(logs) != at.nr - nr + 1:",
           "    if not logs:", f"{COMMANDS}::test_replaying_again_is_refused"),
    # ---- resize: never more than the smallest device, never smaller, syncstatus and size durable first
    Mutant("larger-than-a-device", 0, "marsx/daemon/growth.py", "    if wanted > possible:", "    if False:",
           f"{GROWTH}::test_refused"),
    Mutant("resource-that-shrinks", 0, "marsx/daemon/growth.py", "    if wanted < now:", "    if False:",
           f"{GROWTH}::test_refused"),
    Mutant("growth-that-is-not-durable", 0, "marsx/daemon/growth.py",
           "put_many(links, durable=True)", "put_many(links)", f"{GROWTH}::test_as_much_as_all_have"),
    Mutant("size-before-syncstatus", 0, "marsx/daemon/growth.py",
           "[(paths.syncstatus(resource, host), str(wanted)), (paths.size(resource), str(wanted))]",
           "[(paths.size(resource), str(wanted)), (paths.syncstatus(resource, host), str(wanted))]",
           f"{GROWTH}::test_as_much_as_all_have"),
    # ---- the last word of a host that stops
    Mutant("heartbeat-after-the-last-word", 0, "marsx/daemon/worker.py",
           '"0" if self._leaving else "1"', '"1"', f"{UNIT}/daemon/test_worker.py::test_the_last_word_stands"),
    Mutant("stops-before-others-have-heard", 0, "marsx/daemon/exchange.py",
           "        while any(self.acked.get(host, 0.0) < since",
           "        while not any(self.acked.get(host, 0.0) < since",
           f"{UNIT}/daemon/test_exchange.py::test_taken_means_that_the_others_have_it"),
)
