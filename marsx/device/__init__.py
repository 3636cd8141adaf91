"""Room `device`: how a resource becomes a block device `/dev/mars/RES` on a stock kernel.

  frontend  the contract every front end keeps, device names and sizes
  fuse      the FUSE connection without a mount point, and its clones
  loop      the loop device on top: attach, resize, exact detach, the link in /dev/mars

Promise: functions, no processes, no threads, no state between calls. Everything that opens a loop device or the FUSE
file may wait for the process that serves the device; it says so, and only short-lived children of the keeper call it.
May import: base.
"""
