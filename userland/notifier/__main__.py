"""`python -m llmos.userland.notifier`."""

import sys

from llmos.userland.notifier.watch import main

sys.exit(main())
