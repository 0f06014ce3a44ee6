"""Log lines of both processes: for people, or one JSON object each. Knows no request."""

from __future__ import annotations

import json
import logging
import os
import time
from contextvars import ContextVar

TEXT = "%(asctime)s %(levelname)s %(message)s"
# The HTTP request that a line is about, where there is one.
request_id: ContextVar[str] = ContextVar("request_id", default="")


class JsonLines(logging.Formatter):
    """`{"time", "level", "logger", "process", "message"}`, and `request_id`, `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": os.getpid(),
            "message": record.getMessage(),
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(level: str, format: str) -> None:
    """Send this process' log to stderr; `format` is text or json."""
    stderr = logging.StreamHandler()
    stderr.setFormatter(JsonLines() if format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[stderr], force=True)
    for talkative in ("httpx", "numba"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
