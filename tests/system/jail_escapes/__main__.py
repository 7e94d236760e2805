"""Try one attempt; says on standard error what held it back."""

from __future__ import annotations

import json
import sys

from . import ATTEMPTS, ESCAPED, Stage


def main() -> int:
    """The exit status of the attempt named on the command line."""
    name, stage = sys.argv[1], Stage(**json.loads(sys.argv[2]))
    try:
        return ESCAPED if ATTEMPTS[name].run(stage) else 1
    except (OSError, ImportError, MemoryError, RuntimeError, ValueError) as error:
        print(f"{name}: {error!r}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
