"""Property tests try the same examples in each run, so that a red run means a change; `--hypothesis-profile=default`
searches at random."""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, database=None)
settings.load_profile("repeatable")
