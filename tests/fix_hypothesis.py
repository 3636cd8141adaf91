"""Property tests try the same examples in each run, so that a red run means a change, and none fails because a machine
is slow; `--hypothesis-profile=default` searches at random."""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")
