"""Room `base`: what every other room stands on. Imports the standard library only.

  errors    every error with its exit code and its hint     position  (log number, producer, POS), log names
  config    paths and tunables                              messages  what the program tells people
  lamport   the clock of the tree                           durable   symlinks and files that survive a power cut
  disk      facts about block devices

Promise: nothing here starts a thread, knows a resource, or keeps state that outlives its object. Only `durable`
and `disk` flush anything to stable storage.
"""
