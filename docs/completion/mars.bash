# bash completion for marsadm, marsd and mars-status. Made by `make man` from the table of commands; do not edit.
# To use it: marsadm completion > /etc/bash_completion.d/mars

_mars_resources()
{
    local path
    for path in "${MARS_DIR:-/mars}"/resource-*/; do
        path=${path%/}
        [[ -L $path/size ]] && printf '%s\n' "${path##*/resource-}"
    done
}

_mars_hosts()
{
    local path
    for path in "${MARS_DIR:-/mars}"/ips/ip-*; do
        [[ -L $path && $(readlink "$path") != .deleted ]] && printf '%s\n' "${path##*/ip-}"
    done
}

# $1: the word; $2: candidates. What stands before the last comma of a list stays.
_mars_list()
{
    local head=
    [[ $1 == *,* ]] && head=${1%,*},
    COMPREPLY=($(compgen -P "$head" -W "$2" -- "${1##*,}"))
}

_mars_options="--force --dry-run --timeout= --host= --ip= --ip-HOST= --token= --ignore-sync --repair --continuous --rate= --accept-position= --window= --threshold= --parallel --thresh-logfiles= --thresh-logsize= --persist --macro= --json --verbose --mars-dir= --run-dir= --dev-dir= --etc-dir= --help --version"
_mars_commands="create-cluster create-token join-cluster leave-cluster merge-cluster merge-cluster-check merge-cluster-list create-resource join-resource leave-resource invalidate fake-sync resize set-replay delete-resource primary secondary up down attach detach connect connect-local connect-global disconnect disconnect-local disconnect-global resume-fetch resume-fetch-local resume-fetch-global pause-fetch pause-fetch-local pause-fetch-global pause-sync pause-sync-local pause-sync-global resume-sync resume-sync-local resume-sync-global pause-replay pause-replay-local pause-replay-global resume-replay resume-replay-local resume-replay-global set-sync-limit-value get-sync-limit-value set-global-sync-limit-value get-global-sync-limit-value set-sync-pref-list get-sync-pref-list set-connect-pref-list get-connect-pref-list set-emergency-limit emergency-limit get-emergency-limit set-global-enabled-net-compressions get-tunable set-tunable log-rotate log-delete log-delete-one log-delete-all log-delete-all-replayed log-purge-all err-purge-all link-purge-all cron split-brain log-export verify wait-cluster wait-connect update-cluster wait-resource wait-umount view show show-errors show-state show-info role cat dump-macros dump-all-macros mars-state mars-info state lowlevel-ls-host-ips lowlevel-set-host-ip lowlevel-delete-host set-link get-link delete-file completion"

_marsadm()
{
    local cur=${COMP_WORDS[COMP_CWORD]} command= number=0 word i
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        [[ $word == -* || $word == = || ${COMP_WORDS[i - 1]} == = ]] && continue
        if [[ -z $command ]]; then command=$word; else number=$((number + 1)); fi
    done
    if [[ ${COMP_WORDS[COMP_CWORD - 1]} == --host || $cur == = && ${COMP_WORDS[COMP_CWORD - 1]} == --host ||
          ${COMP_WORDS[COMP_CWORD - 1]} == = && ${COMP_WORDS[COMP_CWORD - 2]} == --host ]]; then
        COMPREPLY=($(compgen -W "$(_mars_hosts)" -- "${cur#=}"))
    elif [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$_mars_options" -- "$cur"))
        [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2> /dev/null
    elif [[ -z $command ]]; then
        COMPREPLY=($(compgen -W "$_mars_commands help version" -- "$cur"))
    else
        case $command:$number in
            help:0) COMPREPLY=($(compgen -W "$_mars_commands" -- "$cur")) ;;
            leave-resource:0 | invalidate:0 | fake-sync:0 | primary:0 | secondary:0 | up:0 | down:0 | attach:0 | detach:0 | connect:0 | connect-local:0 | connect-global:0 | disconnect:0 | disconnect-local:0 | disconnect-global:0 | resume-fetch:0 | resume-fetch-local:0 | resume-fetch-global:0 | pause-fetch:0 | pause-fetch-local:0 | pause-fetch-global:0 | pause-sync:0 | pause-sync-local:0 | pause-sync-global:0 | resume-sync:0 | resume-sync-local:0 | resume-sync-global:0 | pause-replay:0 | pause-replay-local:0 | pause-replay-global:0 | resume-replay:0 | resume-replay-local:0 | resume-replay-global:0 | set-connect-pref-list:0 | get-connect-pref-list:0 | set-emergency-limit:0 | emergency-limit:0 | get-emergency-limit:0 | log-rotate:0 | log-delete:0 | log-delete-one:0 | log-delete-all:0 | log-delete-all-replayed:0 | log-purge-all:0 | err-purge-all:0 | split-brain:0 | wait-resource:0 | wait-umount:0 | show-errors:0 | show-state:0 | show-info:0 | role:0 | mars-state:0 | mars-info:0 | state:0) _mars_list "$cur" "$(_mars_resources) all" ;;
            create-resource:0 | join-resource:0 | resize:0 | set-replay:0 | delete-resource:0 | log-export:0 | verify:0) COMPREPLY=($(compgen -W "$(_mars_resources)" -- "$cur")) ;;
            join-cluster:0 | merge-cluster:0 | merge-cluster-check:0 | merge-cluster-list:0 | lowlevel-set-host-ip:0 | lowlevel-delete-host:0) COMPREPLY=($(compgen -W "$(_mars_hosts)" -- "$cur")) ;;
            set-connect-pref-list:1) _mars_list "$cur" "$(_mars_hosts)" ;;
            set-sync-pref-list:0) _mars_list "$cur" "$(_mars_resources)" ;;
            get-tunable:0 | set-tunable:0) COMPREPLY=($(compgen -W "logger_flush_ms logger_report_interval_s logrot_auto_gb ring_mb shadow_limit_mb writeback_window_mb writeback_fly device_threads required_free_space_1_gb required_free_space_2_gb required_free_space_3_gb required_free_space_4_gb required_free_space_1_percent required_free_space_2_percent required_free_space_3_percent required_free_space_4_percent mars_reset_emergency logger_resume do_fast_fullsync sync_limit sync_flip_interval_sec sync_fly sync_digest copy_timeout start_patience_s max_lamport_future mars_port network_io_timeout web_port stuck_seconds handler_limit compress_level verify_scrub_kb traffic_tuning/client_role_traffic_ratelimit_kb traffic_tuning/server_role_traffic_ratelimit_kb tcp_tuning_0_meta_traffic/ip_tos tcp_tuning_0_meta_traffic/tcp_window_size tcp_tuning_0_meta_traffic/tcp_keepcnt tcp_tuning_0_meta_traffic/tcp_keepintvl tcp_tuning_0_meta_traffic/tcp_keepidle tcp_tuning_1_replication_traffic/ip_tos tcp_tuning_1_replication_traffic/tcp_window_size tcp_tuning_1_replication_traffic/tcp_keepcnt tcp_tuning_1_replication_traffic/tcp_keepintvl tcp_tuning_1_replication_traffic/tcp_keepidle tcp_tuning_2_sync_traffic/ip_tos tcp_tuning_2_sync_traffic/tcp_window_size tcp_tuning_2_sync_traffic/tcp_keepcnt tcp_tuning_2_sync_traffic/tcp_keepintvl tcp_tuning_2_sync_traffic/tcp_keepidle" -- "$cur")) ;;
            wait-resource:1) COMPREPLY=($(compgen -W "is-attach-on is-attach-off is-fetch-on is-fetch-off is-replay-on is-replay-off is-sync-on is-sync-off is-primary-on is-primary-off is-consistent-on is-consistent-off is-uptodate-on is-uptodate-off" -- "$cur")) ;;
            create-resource:1 | join-resource:1) COMPREPLY=($(compgen -f -- "$cur")) ;;
        esac
    fi
}

_marsd()
{
    COMPREPLY=($(compgen -W "start run stop status --force --timeout= --help" -- "${COMP_WORDS[COMP_CWORD]}"))
}

_mars_status()
{
    COMPREPLY=($(compgen -W "--resource= --history --status --system --debug --interval= --json --events --nagios \
        --prometheus --zabbix= --print-template= \
        --ascii --lag= --rest= --space= --peer= --help --version $(_mars_resources | sed s/^/--resource=/)" \
        -- "${COMP_WORDS[COMP_CWORD]}"))
}

complete -F _marsadm marsadm
complete -F _marsd marsd
complete -F _mars_status mars-status
