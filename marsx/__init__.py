"""MARS in user space: asynchronous replication of block devices through transaction logs.

Glossary. One word, one meaning; the code, the messages and the docs use only these.

  log         a transaction log file `log-NNNNNNNNN-HOST`; what the program tells people is never called a log
  messages    what the program tells people
  group       the unit of one log write: one header block with a record table, then the payloads
  record      one request in a group: a write, discard, zero, mark, resize, barrier or old data
  position    (log number, producer, POS): always the end of a group; POS counts from behind the log's header block
  digest      32 hex digits of the chain at a position; equal digests mean equal history
  appended    accepted into memory             }
  written     written to the log file          } on the primary, in this order
  durable     covered by an fdatasync          }
  disk position   everything before it is durable on the data device; `replayed` on a secondary
  fetched     secondary: verified and durable in its copy of the log
  window      a run of whole groups that write-back or replay brings to the disk as one unit
  write-back  primary: shadow and log to data device;  replay: secondary: log to data device
  shadow      newest data per device range that is not yet written back
  sync        bringing a whole replica up to date by comparing blocks; never the system call, which is `flush`
  span        the unit of sync: a range of the device that is asked for, compared and written in one go
  producer    the host that writes a log
  member      a host that has a replica of a resource;  incarnation: one stay of a host in it, a random id
  grant       the fact by which the last producer passes on the right to append the next log
  wish, fact  tree entry written by marsadm; tree entry written by marsd of the host it speaks of
  tree        the symlinks below /mars
  value       what `marsadm view-NAME` shows of one thing;  macro: a text over values, in a language of its own
  keeper      the parent process that holds descriptors;  worker: its child that does everything else
  room        a package of marsx
"""
from __future__ import annotations

__version__ = "0.1.0"

# The .pyz file this program runs from; set by its start-up code. None when it runs from a directory.
archive: str | None = None
