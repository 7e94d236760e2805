"""`python -m llmos.kernel.core`: the real entry is `main`."""

import sys

from llmos.kernel.core.main import main

sys.exit(main(sys.argv[1:]))
