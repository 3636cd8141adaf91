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


def _tcp(name: str, what: str) -> tuple[Tunable, ...]:
    """Socket options of one class of connections."""
    folder = f"tcp_tuning_{name}_traffic"
    return (
        Tunable(f"{folder}/ip_tos", 0, "", 0, 255, f"{what}: type of service"),
        Tunable(f"{folder}/tcp_window_size", 16 << 20, "bytes", 0, 1 << 30, f"{what}: buffers; 0 = the kernel's"),
        Tunable(f"{folder}/tcp_keepcnt", 3, "", 1, 127, f"{what}: probes before the connection is given up"),
        Tunable(f"{folder}/tcp_keepintvl", 3, "s", 1, 3600, f"{what}: time between probes"),
        Tunable(f"{folder}/tcp_keepidle", 4, "s", 1, 3600, f"{what}: silence before the first probe"),
    )


_TABLE = (
    # Log and write-back.
    Tunable("logger_flush_ms", 20, "ms", 0, 60_000,
            "longest time a written group stays unflushed; peers get what is flushed; 0 = flush each group"),
    Tunable("logger_report_interval_s", 2, "s", 1, 3600, "how often positions go to the tree while they move"),
    Tunable("logrot_auto_gb", 32, "GiB", 0, _BIG, "start a new log at this size; 0 = never by itself"),
    Tunable("ring_mb", 32, "MiB", 4, 4096, "newest log bytes held in memory, per primary"),
    Tunable("shadow_limit_mb", 64, "MiB", 1, 1 << 20,
            "memory for the index of data not yet written back, per primary"),
    Tunable("writeback_window_mb", 32, "MiB", 2, 4096,
            "memory of a window of data on its way to the disk: two for a replay, three quarters for write-back"),
    Tunable("writeback_fly", 32, "requests", 1, 1024, "writes to the data device at once, in write-back and replay"),
    Tunable("device_threads", 4, "threads", 1, 64, "service threads per device; counts when the device is made"),
    # Memory and space.
    Tunable("required_free_space_1_gb", 2, "GiB", 0, _BIG, "level 1, less than 1+2+3+4 free: messages"),
    Tunable("required_free_space_2_gb", 2, "GiB", 0, _BIG, "level 2, less than 2+3+4: secondaries drop old logs"),
    Tunable("required_free_space_3_gb", 2, "GiB", 0, _BIG, "level 3, less than 3+4: sync stops"),
    Tunable("required_free_space_4_gb", 2, "GiB", 0, _BIG, "level 4, less than 4: primaries stop logging"),
    *(Tunable(f"required_free_space_{level}_percent", 0, "percent", 0, 25,
              f"in place of required_free_space_{level}_gb: of the file system; 0 = the GiB count")
      for level in (1, 2, 3, 4)),
    Tunable("mars_reset_emergency", 1, "bool", 0, 1, "the emergency level falls by itself when there is space again"),
    Tunable("logger_resume", 1, "bool", 0, 1, "a primary without log goes on with it by itself when there is space"),
    # Sync.
    Tunable("do_fast_fullsync", 1, "bool", 0, 1, "compare before copying; 0 = copy everything"),
    Tunable("sync_limit", 0, "resources", 0, 10_000, "how many resources sync at once here; 0 = no limit"),
    Tunable("sync_flip_interval_sec", 60, "s", 0, 10**6,
            "with a limit: after this time a sync lets a waiting one go; < 8 = never"),
    Tunable("sync_fly", 64, "spans", 1, 256, "spans asked for at once"),
    Tunable("sync_digest", 0, "", 0, 2,
            "digests of sync and verify: 0 = XXH3-128, 1 = SHA-256, 2 = BLAKE2b (40 times slower)"),
    Tunable("copy_timeout", 180, "s", 1, 10**6, "a span not answered by then: connect again"),
    # Cluster and network.
    Tunable("start_patience_s", 5, "s", 0, 3600,
            "after its start a primary waits so long at most for what members that can be reached know of it"),
    Tunable("max_lamport_future", 2592000, "s", 60, _BIG, "a stamp that far ahead of all clocks is not believed"),
    Tunable("mars_port", 7777, "", 1, 65535, "TCP port; counts when marsd starts"),
    Tunable("network_io_timeout", 30, "s", 1, 10**6, "deadline of every wait on the network"),
    Tunable("web_port", 0, "", 0, 65535, "TCP port of /metrics and of the status page; 0 = there is none"),
    Tunable("stuck_seconds", 60, "s", 0, 10**6,
            "what is switched on and does not move for so long is a stall, which is explained; 0 = never"),
    Tunable("handler_limit", 2048, "", 1, 10_000, "incoming connections at once; counts when marsd starts"),
    Tunable("compress_level", 1, "", 0, 9, "Blosc2 level of what syncs send on slow lines; 0 = never compress"),
    Tunable("verify_scrub_kb", 0, "KiB/s", 0, _BIG,
            "each replica here is verified again and again at this rate while nothing is behind; 0 = never"),
    Tunable("traffic_tuning/client_role_traffic_ratelimit_kb", 0, "KiB/s", 0, _BIG,
            "what fetch and syncs here may receive; 0 = no limit"),
    Tunable("traffic_tuning/server_role_traffic_ratelimit_kb", 0, "KiB/s", 0, _BIG,
            "what fetch, syncs and verifies may be sent from here; 0 = no limit"),
    *_tcp("0_meta", "tree"),
    *_tcp("1_replication", "logs"),
    *_tcp("2_sync", "sync"),
)

TUNABLES: dict[str, Tunable] = {tunable.name: tunable for tunable in _TABLE}
