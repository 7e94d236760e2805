"""Logs of every process: one event per line on stderr, JSON for machines, readable on a terminal."""

from __future__ import annotations

import sys

import structlog


def configure(**facts: object) -> None:
    """Call once, first thing in a process; `facts` stand in every line. Keys are facts, never a payload: sizes only."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *_rendering(),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**facts)


def _rendering() -> list[structlog.typing.Processor]:
    if sys.stderr.isatty():
        return [structlog.dev.ConsoleRenderer()]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
