"""The admin room: `marsadm`, the command by which people and scripts tell a cluster what they wish.

What lives here: the command line (`cli`), the table of commands with their help (`table`), what all commands
share (`context`, `checks`, `waits`, `control_client`), and one module per family of commands: `cluster`,
`resource`, `switches`, `roles`, `logs`, `view`. What can be seen is in the rooms `views` and `macro`.

What it promises:
* marsadm writes wishes only (`todo-*`, `primary`, `ips/*`, `removed-*`, ...). Whatever touches facts is a request on
  the control socket, carried out and checked again by marsd (rule 26e).
* A command that fails says so in one line on stderr, perhaps with a hint below it, leaves with the exit status
  of its error class, and has changed nothing, or takes back what it changed (rule 24).
* `all` and lists: a resource that fails does not stop the others.

May import: `base`, `tree`, `log.chain`, `log.reader`. One exception, imported late: `cluster` uses `peer` for the
certificates of `create-cluster` and for the connection of `join-cluster`, because no daemon runs then.
"""
