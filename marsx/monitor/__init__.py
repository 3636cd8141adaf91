"""The monitor room: `mars-status`, the read-only display of a cluster.

What lives here: `report` makes a value of one picture of the tree and of what can be seen of this host, `render` makes
text of that value, `mars_status` is the program. Text, JSON and whatever follows are functions of the same report.

What it promises: nothing is ever written; a display works while marsd is down, and says so; what is shown comes from
the tree, and what cannot be known is not guessed.

May import: `base`, `tree`, `log.chain`, `log.reader`, `log.record`.
"""
