"""`python -m llmos.kernel`."""

import sys

from llmos.kernel.main import main

if __name__ == "__main__":
    sys.exit(main())
