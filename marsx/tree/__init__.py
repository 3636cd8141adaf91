"""The tree room: the small tree of symlinks under /mars that says what every host wants and what every host is.

Lives here: `paths` (every name, built and parsed nowhere else), `store` (the tree on disk with its cache, and the merge
rule), `view` (a frozen picture and pure questions to it), `watch` (inotify).

Promises: a name outside the grammar does not exist; an update is atomic; all hosts that have seen the same entries have
the same tree; nobody believes others about himself.

May import: `marsx.base`, the standard library, and pyinotify (in `watch` only).
"""
