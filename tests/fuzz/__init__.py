"""Fuzzing of everything that reads a log: seeded, with the plain-Python readers of tests/ref as the oracle.

    make fuzz SECONDS=60 SEED=1         under the address and undefined behaviour sanitizers
    python -m tests.fuzz replay FILE    one case
    python -m tests.fuzz show FILE      what is in it

`case` is one input as a file, `make` builds and damages inputs, `targets` feeds them to the product and judges, `run`
drives a child process and keeps what made it fail in `corpus/` (made-*: by hand, each for one check). All of the corpus
is run in `make test` and in `make fuzz`.
"""
