"""Mutants of the roles under failure: force over damaged logs, the right to write, what the cluster simulation finds.
See table.py. A row that CLUSTERS finds says at which history of its 2,000."""
from __future__ import annotations

from tests.mutants.mutant import Mutant

UNIT = "tests/unit"
PLAN = f"{UNIT}/daemon/test_plan.py"
OUTCOMES = f"{UNIT}/admin/test_role_outcomes.py::test_command"
SALVAGE = f"{UNIT}/volume/test_salvage.py"
CLUSTERS = "tests/sim/test_cluster.py::test_cluster"

ROLE_RULES = (
    # ---- 7, 18, 19: found by whole clusters
    Mutant("log-of-force-is-withdrawn-by-sim", 7, "marsx/daemon/salvage.py",  # history 109
           "    links.append((paths.begun(resource, host), log_name(end.nr + 1, host)))\n", "", CLUSTERS),
    Mutant("words-about-who-speaks-count-by-sim", 19, "marsx/daemon/exchange.py",  # history 12
           "            if about in self.sessions and about not in (sender, self._store.host):",
           "            if False:", CLUSTERS, (("marsx/daemon/exchange.py",
                       "        return self._hosts - {self._store.host} - set(self.sessions)",
                       "        return self._hosts - {self._store.host}"),)),
    Mutant("granted-from-anywhere-by-sim", 18, "marsx/daemon/plan.py",  # history 202
           "or local.hold or not _at_the_end(right, local):", "or local.hold:", CLUSTERS),
    # ---- 5: what force gives up is kept, and nothing else is given up
    Mutant("force-throws-the-tail-away", 5, "marsx/volume/salvage.py",
           "        is_cut = _keep_tail(path, sound.header, sound.end.pos, due, aside)", "        is_cut = True",
           f"{SALVAGE}::test_ends_where_it_holds"),
    Mutant("force-begins-at-the-disk-position", 5, "marsx/volume/salvage.py",
           "    while following := _rest_of(env, headers, sound):\n        sound = following\n", "",
           f"{SALVAGE}::test_ends_where_it_holds"),
    Mutant("force-cuts-before-it-keeps", 5, "marsx/volume/salvage.py",
           "        os.rename(entry.path, os.path.join(aside, os.path.basename(entry.path)))\n",
           "        os.unlink(entry.path)\n", f"{SALVAGE}::test_a_crash_anywhere_is_found_again"),
    # ---- 6: a digest that nobody knows is nobody's
    Mutant("unknown-digest-is-zero", 6, "marsx/volume/salvage.py",
           "        digest = digest or os.urandom(16).hex()", '        digest = digest or "0" * 32',
           f"{SALVAGE}::test_a_digest_that_nobody_knows_is_never_equal"),
    # ---- 12: a mixture is no device
    Mutant("a-mixture-is-a-device", 12, "marsx/daemon/plan.py", "    if _is_mixture(view, resource, host, local):",
           "    if False:", f"{PLAN}::test_plan"),
    Mutant("a-mixture-is-taken-by-force", 12, "marsx/admin/roles.py",
           '    return str(until) if until and sound and sound.pos.order < until.order else ""',
           '    return ""', OUTCOMES),
    Mutant("half-a-disk-is-forgotten", 0, "marsx/daemon/plan.py",
           "    if ignores_sync(view, resource, host) or _has_taken(view, resource, host):",
           "    if ignores_sync(view, resource, host):", f"{PLAN}::test_plan"),
    # ---- 18: the right
    Mutant("right-of-a-number", 18, "marsx/tree/roles.py",
           "        if _has_parted(view, resource, host, designated):\n            continue\n", "",
           f"{UNIT}/tree/test_roles.py::test_of_parted_histories_that_of_the_designated_counts"),
    Mutant("who-is-ahead-has-parted", 18, "marsx/tree/roles.py",
           "    return (here is not None and there is not None and view.in_history(resource, host, there) is False\n"
           "            and view", "    return (here is not None and there is not None and view",
           f"{UNIT}/tree/test_roles.py::test_of_parted_histories_that_of_the_designated_counts"),
    Mutant("empty-log-from-anybody", 18, "marsx/daemon/logsource.py",
           "        if end.pos or end.producer == self._host or not self._host:\n", "        if True:\n",
           f"{UNIT}/daemon/test_logsource.py::test_an_empty_log_goes_only_from_its_producer"),
    # ---- 23: what is damaged does not count, on either side
    Mutant("damaged-logs-count-as-had", 23, "marsx/admin/state.py",
           "    for one in (host, other):\n        sound", "    for one in ():\n        sound", OUTCOMES),
    # ---- 27: the role does not go over a gap
    Mutant("the-role-goes-over-a-gap", 27, "marsx/daemon/plan.py",
           "    if waiting and gap_ahead(view, resource, waiting, host):", "    if False:",
           f"{PLAN}::test_the_role_is_not_given_over_a_gap"),
    Mutant("primary-is-asked-for-over-a-gap", 27, "marsx/admin/roles.py",
           "        if gap_ahead(view, resource, host, holder):", "        if False:", OUTCOMES),
)
