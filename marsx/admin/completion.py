"""Completion of command lines for bash, made from the table of commands: `marsadm completion` prints it.

Words come from the tree itself (`/mars/resource-*`, `/mars/ips/ip-*`), so completing starts no program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from marsx.admin.cli import USAGE
from marsx.admin.context import Context
from marsx.admin.table import Command

_OPTION = re.compile(r"^ +(?:-\w, )?(--[a-z][-a-zA-Z]*)(=|\[=)?", re.MULTILINE)

_CONDITIONS = ("attach", "fetch", "replay", "sync", "primary", "consistent", "uptodate")

_SCRIPT = """\
# bash completion for marsadm, marsd and mars-status. Made by `make man` from the table of commands; do not edit.
# To use it: marsadm completion > /etc/bash_completion.d/mars

_mars_resources()
{{
    local path
    for path in "${{MARS_DIR:-/mars}}"/resource-*/; do
        path=${{path%/}}
        [[ -L $path/size ]] && printf '%s\\n' "${{path##*/resource-}}"
    done
}}

_mars_hosts()
{{
    local path
    for path in "${{MARS_DIR:-/mars}}"/ips/ip-*; do
        [[ -L $path && $(readlink "$path") != .deleted ]] && printf '%s\\n' "${{path##*/ip-}}"
    done
}}

# $1: the word; $2: candidates. What stands before the last comma of a list stays.
_mars_list()
{{
    local head=
    [[ $1 == *,* ]] && head=${{1%,*}},
    COMPREPLY=($(compgen -P "$head" -W "$2" -- "${{1##*,}}"))
}}

_mars_options="{options}"
_mars_commands="{commands}"

_marsadm()
{{
    local cur=${{COMP_WORDS[COMP_CWORD]}} command= number=0 word i
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        [[ $word == -* || $word == = || ${{COMP_WORDS[i - 1]}} == = ]] && continue
        if [[ -z $command ]]; then command=$word; else number=$((number + 1)); fi
    done
    if [[ ${{COMP_WORDS[COMP_CWORD - 1]}} == --host || $cur == = && ${{COMP_WORDS[COMP_CWORD - 1]}} == --host ||
          ${{COMP_WORDS[COMP_CWORD - 1]}} == = && ${{COMP_WORDS[COMP_CWORD - 2]}} == --host ]]; then
        COMPREPLY=($(compgen -W "$(_mars_hosts)" -- "${{cur#=}}"))
    elif [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$_mars_options" -- "$cur"))
        [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2> /dev/null
    elif [[ -z $command ]]; then
        COMPREPLY=($(compgen -W "$_mars_commands help version" -- "$cur"))
    else
        case $command:$number in
            help:0) COMPREPLY=($(compgen -W "$_mars_commands" -- "$cur")) ;;
            {lists}) _mars_list "$cur" "$(_mars_resources) all" ;;
            {ones}) COMPREPLY=($(compgen -W "$(_mars_resources)" -- "$cur")) ;;
            {hosts}) COMPREPLY=($(compgen -W "$(_mars_hosts)" -- "$cur")) ;;
            set-connect-pref-list:1) _mars_list "$cur" "$(_mars_hosts)" ;;
            set-sync-pref-list:0) _mars_list "$cur" "$(_mars_resources)" ;;
            get-tunable:0 | set-tunable:0) COMPREPLY=($(compgen -W "{tunables}" -- "$cur")) ;;
            wait-resource:1) COMPREPLY=($(compgen -W "{conditions}" -- "$cur")) ;;
            create-resource:1 | join-resource:1) COMPREPLY=($(compgen -f -- "$cur")) ;;
        esac
    fi
}}

_marsd()
{{
    COMPREPLY=($(compgen -W "start run stop status --force --timeout= --help" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}

_mars_status()
{{
    COMPREPLY=($(compgen -W "--resource= --history --status --system --debug --interval= --json --events --nagios \\
        --prometheus --zabbix= --print-template= \\
        --ascii --lag= --rest= --space= --peer= --help --version $(_mars_resources | sed s/^/--resource=/)" \\
        -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}

complete -F _marsadm marsadm
complete -F _marsd marsd
complete -F _mars_status mars-status
"""


def script(commands: dict[str, Command]) -> str:
    """The whole text."""
    from marsx.base.config import TUNABLES

    rows = list(commands.values())
    named = [row for row in rows if row.synopsis.lstrip("[").startswith("HOST")]
    found = _OPTION.findall(USAGE)
    return _SCRIPT.format(
        options=" ".join(name + ("=" if equals == "=" else "") for name, equals in found),
        commands=" ".join(row.name for row in rows if row.family != "habits"),
        lists=_cases(row for row in rows if row.scope in ("each", "maybe")),
        ones=_cases(row for row in rows if row.scope == "one"),
        hosts=_cases(named),
        tunables=" ".join(TUNABLES),
        conditions=" ".join(f"is-{name}-{end}" for name in _CONDITIONS for end in ("on", "off")),
    )  # fmt: skip


def _cases(rows: Iterable[Command]) -> str:
    return " | ".join(f"{row.name}:0" for row in rows)


def show(ctx: Context, args: tuple[str, ...]) -> None:
    """completion: print it."""
    from marsx.admin.marsadm import commands

    ctx.say(script(commands()).rstrip())


COMMANDS = (
    Command(
        "completion", "", show, "print the completion of command lines for bash", "view",
        example="marsadm completion > /etc/bash_completion.d/mars", scope="none", daemon=False, writes=False,
    ),
)  # fmt: skip
