"""Compiled parts, built from `ext/`: loops over bytes and system calls; no names, no policy.

An extension imports nothing of marsx and raises only OSError, ValueError, MemoryError or returns a code; the one
Python module that imports it gives the error its project name. Nothing hand-written lives here but type stubs.
"""
