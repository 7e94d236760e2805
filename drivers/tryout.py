"""Starts a driver with nothing granted and nobody to talk to: whether it fits its manifest, and gets ready all the same.

python -m llmos.drivers.tryout MANIFEST, in a jail; the working directory becomes its own. Its status is the last line, or `ERROR: …`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llmos.drivers.testing import running
from llmos.ipc.errors import OpError


def main() -> int:
    """1 when it does not start."""
    try:
        with running(Path(sys.argv[1]), Path.cwd()) as driver:
            status = " ".join(str(driver.status).split())
    except OpError as error:
        return _failed(error.detail)
    except Exception as error:  # noqa: BLE001  (the driver's own code)
        return _failed(f"{type(error).__name__}: {error}")
    sys.stdout.write(f"{status}\n")
    return 0


def _failed(why: str) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"\nERROR: {' '.join(why.split())}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
