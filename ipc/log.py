"""Logs of every process: one event per line on stderr, JSON for machines, readable on a terminal.

structlog is imported with the first line, not before: it takes longer than all else a process needs to be ready.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import structlog

_facts: dict[str, object] = {}


def configure(**facts: object) -> None:
    """Call once, first thing in a process; `facts` stand in every line. Keys are facts, never a payload: sizes only."""
    _facts.update(facts)


class _Logger:
    """structlog's own logger, from its first use on."""

    _logger: Any = None

    def __getattr__(self, name: str) -> Any:
        if _Logger._logger is None:
            _Logger._logger = _configured()
        return getattr(_Logger._logger, name)


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """For a module to log with: `log.info("op.done", ms=3)`."""
    return _Logger()


def _configured() -> structlog.typing.FilteringBoundLogger:
    import structlog

    def add_facts(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**_facts, **event}

    rendering: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if sys.stderr.isatty()
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            add_facts,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *rendering,
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger()  # type: ignore[no-any-return]
