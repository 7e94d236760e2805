"""Attempts to get out of a jail, each a function that really tries. Run as `python -m jail_escapes NAME STAGE`.

Only the standard library is used, and this package alone, so that it runs wherever a jail lets it.
"""

from . import files, processes, sockets, system, using_up
from .stage import ATTEMPTS, ESCAPED, LIMITS, SCRATCH, Attempt, Stage

__all__ = [
    "ATTEMPTS",
    "ESCAPED",
    "LIMITS",
    "SCRATCH",
    "Attempt",
    "Stage",
    "files",
    "processes",
    "sockets",
    "system",
    "using_up",
]
