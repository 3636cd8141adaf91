"""Door of the fuzzer; see tests/fuzz/__init__.py."""
import sys

from tests.fuzz.run import main

sys.exit(main())
