"""What Consumer and Producer of one resource are made of: everything of this host that they work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from marsx.daemon import emergency
from marsx.daemon.facts import Publisher
from marsx.daemon.logsource import Stock
from marsx.daemon.site import Site
from marsx.tree import paths
from marsx.volume.env import Env


@dataclass(frozen=True)
class Context:
    """`disk_fd`: the data device, stays the runner's. `changed`: the runner looks again, with a new view."""

    site: Site
    resource: str
    env: Env
    publisher: Publisher
    stock: Stock
    disk_fd: int
    changed: Callable[[], None]


def make_env(site: Site, resource: str, directory: str, publisher: Publisher, on_trouble: Callable[[str], None]) -> Env:
    """What a volume is told, as the tree and the settings are now."""
    view, settings = site.view(), site.settings
    return Env(
        directory=directory,
        uuid=view.log_uuid(resource),
        resource=resource,
        host=site.host,
        device_size=view.size(resource),
        block_size=view.block_size(resource) or 512,
        facts=publisher,
        stamp=site.lamport.now,
        window_bytes=settings.get("writeback_window_mb") << 20,
        fly=settings.get("writeback_fly"),
        ring_bytes=max(16, settings.get("ring_mb")) << 20,
        index_bytes=settings.get("shadow_limit_mb") << 20,
        flush_ms=settings.get("logger_flush_ms"),
        reserve_bytes=emergency.reserve(site),
        low_bytes=emergency.low_room(site),
        on_trouble=on_trouble,
        begun=lambda: site.store.get(paths.begun(resource, site.host)),
    )
