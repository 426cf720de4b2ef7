"""Structured logs: one JSON line for each event on standard error, with its trace. No line holds a prompt, an image or
a key.

Logging makes no request, task or process fail, even with a full disk, a reader that is gone or a value that has no text
(`LineWriter`, `plain`).
"""

import json
import logging
import os
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

from ops.telemetry.line_writer import LineWriter, Losses
from ops.telemetry.log_values import plain
from ops.telemetry.metrics import log_lines_lost

STANDARD_ERROR: Final = 2
LEVEL_VARIABLE: Final = "WARMLANE_LOG_LEVEL"
LEVELS: Final = ("debug", "info", "warning", "error")
# The likeliest losses: their counters stand at 0 before the first one.
USUAL_LOSSES: Final = ("ENOSPC", "EIO", "EPIPE", "EAGAIN")


def configure_logging(role: str, *, level: str = "info") -> None:
    """Every log line of this process becomes one JSON object with time, level, role and event. Lines below *level*, or
    below WARMLANE_LOG_LEVEL where that is set, are left out.
    """
    asked = os.environ.get(LEVEL_VARIABLE, "").strip().lower()
    chosen = asked if asked in LEVELS else level
    lines = LineWriter(STANDARD_ERROR, word_of=partial(_loss, role), on_loss=log_lines_lost.add)
    for reason in USUAL_LOSSES:
        log_lines_lost.begin(reason)
    # an exception becomes text, with its frames, before `render` sees it as a value
    chain: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*chain, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[chosen.upper()]),
        logger_factory=lambda *_: _Logger(lines),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)
    # libraries log through the standard library: warnings and worse, in the same form
    handler = _Handler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=render, foreign_pre_chain=[structlog.stdlib.add_logger_name, *chain]
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    if asked and asked not in LEVELS:
        structlog.get_logger("logs").warning("log_level_ignored", asked=asked, expected=LEVELS, level=chosen)


def render(_: WrappedLogger, __: str, line: EventDict) -> str:
    """*line* as one line of JSON in ASCII, so that no text in it can look like another line; it never raises."""
    return json.dumps(plain(dict(line)))


class _Logger:
    """structlog writes rendered lines with it."""

    def __init__(self, lines: LineWriter) -> None:
        self._lines = lines

    def msg(self, line: str) -> None:
        self._lines.write(line.encode("ascii") + b"\n")

    log = debug = info = warning = error = critical = msg


class _Handler(logging.Handler):
    """Libraries log with it. A message whose arguments do not fit is logged without them."""

    def __init__(self, lines: LineWriter) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as error:
            line: dict[str, Any] = {"event": str(record.msg), "not_formatted": error, "logger": record.name}
            text = render(None, "", line | {"level": record.levelname.lower(), "timestamp": datetime.now(UTC)})
        self._lines.write(text.encode("ascii") + b"\n")


def _loss(role: str, lost: Losses) -> bytes:
    line = {"lines": sum(lost.values()), "reasons": dict(lost), "event": "log_lines_lost", "role": role}
    return render(None, "", {**line, "level": "warning", "timestamp": datetime.now(UTC)}).encode("ascii") + b"\n"


def _add_trace(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Adds the ids of the current trace and span, as Jaeger shows them; nothing where nothing is traced."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        line["trace_id"], line["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return line
