"""Room `daemon`: marsd. The only room that starts processes and threads, and the only one that writes facts.

  marsd       the command: start, run, stop, status        keeper      the parent: descriptors that outlive the worker
  runfile     who runs here: pid lock, worker lock, state  keeperjobs  short-lived children of the keeper
  keeperlink  the worker's end of the line to the keeper   worker      the control plane, one asyncio loop
  plan, resource, exchange, control, space                 what the worker is made of

Promise: a worker may die at any moment and be started again without an I/O error for anybody (the keeper); the planner
opens nothing and decides everything; the rest carries out. May import: all rooms but admin and monitor.
"""
