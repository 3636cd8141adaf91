r"""The texts of the built-in macros, in the macro language (docs/views.md). `marsadm dump-macros` writes them to files.

A line that ends with `\` goes on in the next, as in a NAME.tpl. `default` is `marsadm view`; NAME-header,
NAME-resource-header, NAME-global and NAME-footer frame NAME when it is shown for `all`.
"""

from __future__ import annotations

SHORT = {
    "default": "the device, the state in one line, what is under way, what is wrong: marsadm view",
    "default-device": "the device here: who uses it, how much",
    "default-line": "  RES [replicas/hosts] diskstate replstate flags role primarynode commstate",
    "default-hints": "a resize is possible, or part of the disk here is not used",
    "default-header": "algorithms in use; before all resources",
    "default-resource-header": "--------- resource RES SIZE [replicas/hosts]",
    "default-global": "the same as comminfo; behind all resources",
    "default-footer": "nothing; the end of all, for a NAME.tpl of your own",
    "comminfo": "silent hosts, messages of hosts, clock",
    "diskstate": "the data here in one word",
    "outdated-flags": "F: log is missing here, R: log is not replayed",
    "replstate": "what goes on with the replica in one word",
    "flags": "device, consistent, attached, synced, fetched, replayed; small: on the way, -: no",
    "role": "None, Primary, NotYetPrimary, RemainsPrimary, ForcedPrimary or Secondary",
    "todo-role": "None, Primary or Secondary by wish",
    "primarynode": "the designated primary",
    "commstate": "how long the primary has been silent, if longer than --window",
    "syncinfo": "bar and numbers of the sync",
    "sync-line": "numbers of the sync",
    "replinfo": "bar and numbers of fetch and replay",
    "fetch-line": "numbers of fetch",
    "replay-line": "numbers of replay",
    "1and1": "the older form of default, for scripts",
    "1and1-resource-header": "--------- resource RES",
    "diskstate-1and1": "Detached, Inconsistent, Outdated[FR] or Uptodate",
    "outdated-flags-1and1": "the same with --threshold",
    "replstate-1and1": "what goes on, older words",
    "flags-1and1": "-SFR-: switches of sync, fetch and replay",
    "role-1and1": "Primary or Secondary by fact",
    "primarynode-1and1": "the first host whose device is there, or -",
    "syncinfo-1and1": "the same as syncinfo",
    "sync-line-1and1": "the same as sync-line",
    "replinfo-1and1": "bar and numbers, older form",
    "fetch-line-1and1": "numbers of fetch, older form",
    "replay-line-1and1": "numbers of replay, older form",
    **{name: "yours to write: a NAME.tpl" for name in ("state", "cstate", "dstate", "status")},
}

_FAULTY = r"[%replay-code{}=%errno-text{%replay-code{}}]"

_SYNCINFO = r"""\
     syncing: %progress{20}{%sync-pos{}}{0}{%sync-size{}}  %sprintf{%.2f}{%sync-percent{}}%  \
(%human-numbers{}{/}{)}{%sync-pos{}}{%sync-size{}}  rate: %human-rate{%sync-rate{}}/sec  \
remaining: %human-seconds{%sync-remain{}} hrs\n"""

_SYNC_LINE = r"""\
       > sync: %subst{%human-numbers{}{/}{}{%sync-pos{}}{%sync-size{}}}{ }{} \
rate: %human-numbers{}{}{}{%sync-rate{}}/sec  remaining: %human-seconds{%sync-remain{}} hrs\n"""

_REPLAYING = r"""\
     replaying: %progress{20}{%work-pos{}}{%fetch-pos{}}{%work-size{}}  %sprintf{%.2f}{%work-percent{}}%  \
"""

_RAW = {
    "default": r"""\
%include{default-device}%include{default-line}%include{default-hints}\
%if{%and{%is-attach{}}{%not{%is-primary{}}}}{\
%unless{%sync-reached{}}{%include{syncinfo}}%unless{%work-reached{}}{%include{replinfo}}}\
%include{resource-errors}""",
    "default-device": r"""\
%if{%device-present{}}{  LocalDevice %get-device{} [%if{%is-device-opened{}}{Opened\
%if{%known-device-mounted{}}{, %known-device-mountpoint{}}, %device-ops-rate{} IOPS\
%if{%device-nrflying{}}{, %device-nrflying{} Flying\
%if{%>{%device-completion-age{}}{%{window}}}{, HANGING age: %human-seconds{%device-completion-age{}}}}}{Closed}]\n}""",
    "default-line": r"""\
  %{res} [%count-resource-peers{}/%count-cluster-peers{}] %include{diskstate} %include{replstate} %include{flags} \
%include{role} %include{primarynode} %include{commstate}\n""",
    "default-hints": r"""\
%if{%is-member{}}{%if{%>={%resource-possible-size{}}{%+{%resource-size{}}{4096}}}{\
     HINT: all disks have room for %human-number{}{}{}{%resource-possible-size{}}: marsadm resize %{res}\n}\
{%>={%disk-size{}}{%+{%resource-size{}}{4096}}}{\
     HINT: %human-number{}{}{}{%-{%disk-size{}}{%resource-size{}}} of the disk here are not used, \
another one is smaller\n}}""",
    "default-header": r"""\
used-log-compression="%used-log-compression{}"\nused-net-compression="%used-net-compression{}"\n\
used-log-digest="%used-log-digest{}"\nused-net-digest="%used-net-digest{}"\n""",
    "default-resource-header": r"""\
--------- resource %{res} %human-number{}{}{}{%resource-size{}} [%count-resource-peers{}/%count-cluster-peers{}]\n""",
    "default-global": r"%include{comminfo}",
    "default-footer": "",
    "comminfo": r"""\
%let{said}{%comm-status{}}\
%if{%{said}}{++++++++++++ Global / Communication Status ++++++++++++\n%{said}}\
%if{%>{%lamport-slip{}}{%{window}}}{\
++++++++++++ Lamport time slip: %human-seconds{%lamport-slip{}} ++++++++++++\n}""",
    "diskstate": r"""\
%if{%disk-error{}}{DISK_ERROR=%disk-error{},}\
%unless{%is-member{}}{NotJoined}{%disk-present{}}{NotPresent}\
{%todo-attach{}}{%if{%is-attach{}}{Detaching}{Detached}}{%if{\
%<{%replay-code{}}{0}}{%if{%=={%replay-code{}}{-85}}{IncompleteLog}\
{%=={%replay-code{}}{-56}}{UnInitializedLogRecord}{DefectiveLog}""" + _FAULTY + r"""}\
{%is-orphan{}}{Orphan}{%not{%is-attach{}}}{NoAttach}\
{%or{%not{%is-consistent{}}}{%not{%work-reached{}}}}{\
%if{%is-primary{}}{WriteBack%call{diskstate-amount}}{%todo-primary{}}{Recovery%call{diskstate-amount}}\
{%not{%is-consistent{}}}{InConsistent}{OutDated[%include{outdated-flags}]}}\
{%is-primary-emergency{}}{EmergencyMode}{UpToDate}}""",
    "diskstate-amount": r"""\
[%subst{%human-number{}{}{}{%replay-rest{}}}{ }{}]""",
    "outdated-flags": r"%unless{%fetch-reached{}}{F}%unless{%replay-reached{}}{R}",
    "replstate": r"""\
%unless{%is-module-loaded{}}{ModuleNotLoaded}{%is-responsive{}}{UnResponsive}{%is-member{}}{NotJoined}\
{%is-started{}}{NotStarted}{\
%if{%todo-primary{}}{%if{%not{%is-primary{}}}{NotYetPrimary}{%is-emergency{}}{EmergencyMode}{Replicating}}\
{%not{%sync-reached{}}}{%if{%todo-sync{}}{Syncing}{PausedSync}}\
{%not{%todo-fetch{}}}{PausedFetch}{%not{%todo-replay{}}}{PausedReplay}\
{%not{%get-primary{}}}{NoPrimaryDesignated}{%not{%is-alive{}}}{PrimaryUnreachable}\
{%is-orphan{}}{Orphan}{Replaying}}""",
    "flags": r"""\
%if{%is-member{}}{%if{%device-present{}}{D}{%disk-present{}}{d}{-}\
%if{%is-consistent{}}{C}{%sync-reached{}}{c}{-}\
%if{%and{%is-attach{}}{%todo-attach{}}}{A}{%or{%is-attach{}}{%todo-attach{}}}{a}{-}\
%if{%sync-reached{}}{S}{%todo-sync{}}{s}{-}\
%if{%fetch-reached{}}{F}{%todo-fetch{}}{f}{-}\
%if{%replay-reached{}}{R}{%todo-replay{}}{r}{-}}{------}""",
    "role": r"""\
%if{%not{%is-member{}}}{None}{%is-primary{}}{\
%if{%>{%nr-primary{}}{1}}{ForcedPrimary}{%todo-primary{}}{Primary}{RemainsPrimary}}\
{%todo-primary{}}{NotYetPrimary}{Secondary}""",
    "todo-role": r"%if{%not{%is-member{}}}{None}{%todo-primary{}}{Primary}{Secondary}",
    "primarynode": r"%get-primary{}",
    "commstate": r"%if{%>{%alive-age{}}{%{window}}}{%human-seconds{%alive-age{}}}",
    "syncinfo": _SYNCINFO + r"%include{sync-line}",
    "sync-line": _SYNC_LINE,
    "replinfo": _REPLAYING + r"""\
(%human-numbers{}{/}{)}{%work-pos{}}{%work-size{}}  logs: [%replay-lognr{}\
%if{%!={%fetch-lognr{}}{%replay-lognr{}}}{::%fetch-lognr{}}\
%if{%!={%work-lognr{}}{%fetch-lognr{}}}{..%work-lognr{}}]\n\
%include{fetch-line}%include{replay-line}""",
    "fetch-line": r"""\
       > fetch: %human-number{}{}{}{%fetch-rest{}}%if{%>{%fetch-age{}}{0}}{ age: %human-seconds{%fetch-age{}}}\
%if{%>{%fetch-lag{}}{0}}{ lag: %human-seconds{%fetch-lag{}}} \
rate: %human-number{}{}{}{%fetch-rate{}}/s remaining: %human-seconds{%fetch-remain{}}\n""",
    "replay-line": r"""\
       > replay: %human-number{}{}{}{%replay-rest{}}%if{%>{%replay-age{}}{0}}{ age: %human-seconds{%replay-age{}}}\
%if{%>{%replay-lag{}}{0}}{ lag: %human-seconds{%replay-lag{}}} \
rate: %human-number{}{}{}{%replay-rate{}}/s remaining: %human-seconds{%replay-remain{}}\n""",
    "1and1": r"""\
  %{res} %include{diskstate-1and1} %include{replstate-1and1} %include{flags-1and1} %include{role-1and1} \
%include{primarynode-1and1}\n\
%if{%is-attach{}}{%unless{%sync-reached{}}{%include{syncinfo-1and1}}\
%unless{%work-threshold-reached{}}{%include{replinfo-1and1}}}\
%include{resource-errors-1and1}""",
    "1and1-resource-header": r"--------- resource %{res}\n",
    "diskstate-1and1": r"""\
%if{%or{%not{%disk-present{}}}{%not{%is-attach{}}}}{Detached}{%not{%is-almost-consistent{}}}{Inconsistent}\
{%work-threshold-reached{}}{Uptodate}{Outdated[%include{outdated-flags-1and1}]}""",
    "outdated-flags-1and1": r"%unless{%fetch-threshold-reached{}}{F}%unless{%replay-threshold-reached{}}{R}",
    "replstate-1and1": r"""\
%if{%not{%is-member{}}}{NotJoined}{%is-primary{}}{Replicating}{%not{%is-alive{}}}{PrimaryUnreachable}\
{%not{%sync-reached{}}}{%if{%todo-sync{}}{Syncing}{PausedSync}}\
{%not{%and{%todo-fetch{}}{%todo-replay{}}}}{PausedReplay}{Replaying}""",
    "flags-1and1": r"-%if{%todo-sync{}}{S}{-}%if{%todo-fetch{}}{F}{-}%if{%todo-replay{}}{R}{-}-",
    "role-1and1": r"%if{%is-primary{}}{Primary}{Secondary}",
    "primarynode-1and1": r"%or{%actual-primary{}}{-}",
    "syncinfo-1and1": _SYNCINFO + r"%include{sync-line-1and1}",
    "sync-line-1and1": _SYNC_LINE,
    "replinfo-1and1": _REPLAYING + r"""\
(%human-numbers-1and1{}{/}{)}{%work-pos{}}{%work-size{}}  logs: [%replay-lognr{}..%fetch-lognr{}]\n\
%include{fetch-line-1and1}%include{replay-line-1and1}""",
    "fetch-line-1and1": r"""\
       > fetch: %human-numbers-1and1{}{}{}{%fetch-rest{}} rate: %human-numbers-1and1{}{}{}{%fetch-rate{}}/sec  \
remaining: %human-seconds{%fetch-remain{}} hrs\n""",
    "replay-line-1and1": r"""\
       > replay: %human-numbers-1and1{}{}{}{%replay-rest{}} rate: %human-numbers-1and1{}{}{}{%replay-rate{}}/sec  \
remaining: %human-seconds{%replay-remain{}} hrs\n""",
    **{name: r"NYI Please override macro \%%{0}\{\}" for name in ("state", "cstate", "dstate", "status")},
}

MACROS: dict[str, str] = {name: text.replace("\\\n", "") for name, text in _RAW.items()}
SHORT["diskstate-amount"] = "[AMOUNT] of what is not on the disk"
GLOBAL = frozenset({"default-header", "default-global", "default-footer", "comminfo"})
"""Macros that speak of no resource."""
