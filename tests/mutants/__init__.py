"""Proof that tests can fail: each correctness rule taken out of the product, one at a time.

    make mutants                        all of them
    make mutants ARGS='-k rule-5'       those whose name contains the text

`table` lists them: what is changed where, and which test must fail then. `run` copies the tree, changes it, builds what
the change touches, and runs that test: a mutant that survives is a test that proves nothing. That every row still fits
the code, and that every rule has one, is checked in `make test` (tests/unit/test_house_rules.py).
"""
