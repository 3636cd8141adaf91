"""The serving half of the fuse+loop front end, in the worker: answers the kernel's requests out of a volume
(`ext/marsdev.pyx`)."""
from __future__ import annotations

from marsx._ext import marsdev

Frontend = marsdev.Frontend
