"""Logging as the settings want it: to stderr, as text or as one JSON object per line."""

import json
import logging
import sys
from datetime import UTC, datetime

from app.settings import Settings


class JsonFormatter(logging.Formatter):
    """``at``, ``level``, ``logger``, ``message``, and ``error`` with the stack when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def configure(settings: Settings) -> None:
    """Send all logging to stderr, in the format and from the level of the settings on."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else text)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.log_level.upper())
    # Their own lines tell about every connection, aiokafka's even as errors; ours say what it means.
    quiet = {
        "aiokafka": logging.CRITICAL,
        "asyncio": logging.WARNING,
        "faust": logging.WARNING,
        "mode": logging.WARNING,
    }
    for name, level in quiet.items():
        logging.getLogger(name).setLevel(root.level if root.level <= logging.DEBUG else max(root.level, level))
