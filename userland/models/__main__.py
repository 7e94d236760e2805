"""See `llmos.userland.models.command`."""

import sys

from llmos.userland.models.command import main

sys.exit(main())
