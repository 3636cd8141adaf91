"""The table of tunables: name, default, unit, range, meaning. Nothing else; reading them is `config.Settings`.

Names are those of the original where the meaning is the same. A name with `/` is a file in a folder of
`run_dir/sys`. Where our default differs from the original's, the meaning says why.
"""
from __future__ import annotations

from dataclasses import dataclass

_BIG = 10**15


@dataclass(frozen=True, slots=True)
class Tunable:
    """One integer that can be changed while marsd runs."""

    name: str
    default: int
    unit: str
    low: int
    high: int
    meaning: str


def _limiter(name: str, what: str) -> tuple[Tunable, ...]:
    """The settable files of one limiter."""
    return (
        Tunable(f"{name}_ratelimit_kb", 0, "KiB/s", 0, _BIG, f"{what}: bytes a second; 0 = no limit"),
        Tunable(f"{name}_ratelimit_ops", 0, "1/s", 0, _BIG, f"{what}: operations a second; 0 = no limit"),
        Tunable(f"{name}_maxdelay_ms", 1000, "ms", 0, 60_000, f"{what}: longest single delay"),
    )


def _tcp(name: str, what: str) -> tuple[Tunable, ...]:
    """Socket options of one class of connections."""
    folder = f"tcp_tuning_{name}_traffic"
    return (
        Tunable(f"{folder}/ip_tos", 0, "", 0, 255, f"{what}: type of service"),
        Tunable(f"{folder}/tcp_window_size", 8 << 20, "bytes", 0, 1 << 30, f"{what}: socket buffers; 0 = the kernel's"),
        Tunable(f"{folder}/tcp_keepcnt", 3, "", 1, 127, f"{what}: probes before the connection is given up"),
        Tunable(f"{folder}/tcp_keepintvl", 3, "s", 1, 3600, f"{what}: time between probes"),
        Tunable(f"{folder}/tcp_keepidle", 4, "s", 1, 3600, f"{what}: silence before the first probe"),
    )


_TABLE = (
    # Log and write-back.
    Tunable("logger_completion_semantics", 2, "", 0, 2,
            "when a write is answered: 0 = accepted, 1 = group written, 2 = and all groups before it (rule 1)"),
    Tunable("logger_flush_ms", 20, "ms", 0, 60_000,
            "longest time a written group stays unflushed; peers get what is flushed; 0 = flush each group"),
    Tunable("logger_report_interval_s", 2, "s", 1, 3600, "how often positions go to the tree while they move"),
    Tunable("logger_writeback_maxage_s", 900, "s", 1, 10**6, "write-back of older data is not put off any longer"),
    Tunable("logger_resume", 1, "bool", 0, 1, "leave emergency mode by itself when there is space again"),
    Tunable("logger_replay_timeout_sec", 1, "s", 1, 3600, "replay waits that long for more log before it rests"),
    Tunable("logger_allow_compress", 0, "bool", 0, 1,
            "compress payloads in the log; off: a disk is faster than a compressor"),
    Tunable("logrot_auto_gb", 32, "GiB", 0, _BIG, "start a new log at this size; 0 = never by itself"),
    Tunable("ring_mb", 32, "MiB", 4, 4096, "newest log bytes held in memory, per primary resource"),
    Tunable("shadow_limit_mb", 64, "MiB", 1, 1 << 20,
            "memory for the index of data not yet written back, per primary resource"),
    Tunable("shadow_log_limit_gb", 0, "GiB", 0, _BIG, "slow writers down when so much is not written back; 0 = never"),
    Tunable("writeback_window_mb", 64, "MiB", 1, 4096, "most data of one window of write-back or replay"),
    Tunable("writeback_fly", 32, "requests", 1, 1024, "writes to the data device at once, in write-back and replay"),
    Tunable("device_threads", 4, "threads", 1, 64, "service threads per device; counts when the device is made"),
    Tunable("write_throttle_start_percent", 0, "%", 0, 100, "/mars so full: begin to slow writers down; 0 = never"),
    Tunable("write_throttle_end_percent", 90, "%", 0, 100, "/mars so full: slow down all writers"),
    *_limiter("write_throttle", "writers while /mars fills"),
    *_limiter("io_tuning/writeback", "write-back"),
    *_limiter("io_tuning/replay", "replay"),
    Tunable("io_tuning/writeback_until_percent", 30, "%", 0, 100, "/mars so full: the limit on write-back ends"),
    # Memory and space.
    Tunable("mem_limit_percent", 20, "% of RAM", 1, 80, "most memory for data buffers of all resources"),
    Tunable("mem_limit_gb", 16, "GiB", 0, _BIG, "the same as a size; the smaller counts; 0 = only the percentage"),
    Tunable("expected_resources", 12, "", 1, 10_000, "mem_limit is divided by this or the real number, the larger"),
    Tunable("required_total_space_0_gb", 12, "GiB", 0, _BIG, "smallest /mars marsd accepts"),
    Tunable("required_free_space_1_gb", 2, "GiB", 0, _BIG, "level 1, less than 1+2+3+4 free: messages"),
    Tunable("required_free_space_2_gb", 2, "GiB", 0, _BIG, "level 2, less than 2+3+4: secondaries drop old logs"),
    Tunable("required_free_space_3_gb", 2, "GiB", 0, _BIG, "level 3, less than 3+4: sync stops"),
    Tunable("required_free_space_4_gb", 2, "GiB", 0, _BIG, "level 4, less than 4: primaries stop logging"),
    Tunable("log_autodelete_free_gb", 0, "GiB", 0, _BIG,
            "keep logs all members have until less than this is free; 0 = delete them at once"),
    Tunable("mars_reset_emergency", 1, "bool", 0, 1, "secondaries may drop logs they still need at level 2"),
    # Sync.
    Tunable("do_fast_fullsync", 1, "bool", 0, 1, "compare before copying; 0 = copy everything"),
    Tunable("sync_limit", 0, "resources", 0, 10_000, "how many resources sync at once here; 0 = no limit"),
    Tunable("sync_flip_interval_sec", 60, "s", 0, 10**6, "after this time a sync lets a waiting one go; < 8 = never"),
    Tunable("sync_fly", 8, "spans", 1, 256, "spans asked for at once"),
    Tunable("copy_timeout", 180, "s", 1, 10**6, "a span not answered by then: connect again"),
    # Cluster and network.
    Tunable("alive_window", 30, "s", 1, 10**6, "a peer not heard for so long counts as down"),
    Tunable("min_update_seconds", 10, "s", 1, 3600, "longest time without a stamp that says we are alive"),
    Tunable("scan_interval_sec", 5, "s", 1, 3600, "the tree is read again from disk so often, besides inotify"),
    Tunable("propagate_interval_sec", 60, "s", 1, 3600, "whole tree to every peer so often; changes go at once"),
    Tunable("max_lamport_future", 2592000, "s", 60, _BIG, "a stamp that far ahead of all clocks is not believed"),
    Tunable("mars_port", 7777, "", 1, 65535, "TCP port; counts when marsd starts"),
    Tunable("network_io_timeout", 30, "s", 1, 10**6, "deadline of every wait on the network"),
    Tunable("parallel_connections", 2, "", 1, 16, "connections for bulk data per peer"),
    Tunable("handler_limit", 512, "", 1, 10_000, "incoming connections at once"),
    Tunable("compress_level", 1, "", 0, 9, "Blosc2 level on slow lines; 0 = never compress"),
    Tunable("mars_keep_msg_s", 10, "s", 0, 10**6, "a message stays in the tree that long after its reason has gone"),
    *_limiter("traffic_tuning/client_role_traffic", "what we fetch"),
    *_limiter("traffic_tuning/server_role_traffic", "what we serve"),
    *_tcp("0_meta", "tree"),
    *_tcp("1_replication", "logs"),
    *_tcp("2_sync", "sync"),
)

TUNABLES: dict[str, Tunable] = {tunable.name: tunable for tunable in _TABLE}
