"""How the engine fails as a whole. Knows no process and no request."""

from __future__ import annotations


class EngineStartError(Exception):
    """The engine could not start; the message is for the operator."""


class EngineDeadError(Exception):
    """The engine process is gone, and every open request with it; the message says why."""
