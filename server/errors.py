"""What a client can be told went wrong: one tree, each leaf an HTTP status and OpenAI's codes.

ApiError > BadRequest (> TooLong) · Unauthorized · NotFound (> ModelNotFound) · MethodNotAllowed
         · PayloadTooLarge · UnsupportedMediaType · HeadersTooLarge · EngineDead · TimedOut
         · GenerationFailed · TryAgain (> Overloaded · ShuttingDown · NotReady · OutOfMemory)
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager


class ApiError(Exception):
    """Becomes `{"error": {"message", "type", "param", "code"}}` with `status`."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    @property
    def headers(self) -> dict[str, str]:
        return {}

    def body(self) -> dict[str, object]:
        """The error object of the OpenAI wire."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class BadRequest(ApiError):
    """The request says something that cannot be done; `param` names the field."""

    status = 400
    type = "invalid_request_error"


class TooLong(BadRequest):
    """The prompt, or the prompt and what may follow it, is longer than the context."""

    code = "context_length_exceeded"

    def __init__(self, param: str, *, limit: int, num_prompt: int, num_output: int = 0) -> None:
        wanted = f"{num_prompt} tokens in the prompt"
        if num_output:
            wanted += f" and {num_output} in the completion"
        super().__init__(
            f"this model's context holds {limit} tokens, but the request asks for {wanted}", param
        )


class Unauthorized(ApiError):
    """No key, or a wrong one. `scheme` is how the client may present it."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    def __init__(self, message: str, scheme: str) -> None:
        super().__init__(message)
        self._scheme = scheme

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": f'{self._scheme} realm="turbosparse"'}


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"


class PayloadTooLarge(ApiError):
    status = 413
    type = "invalid_request_error"


class UnsupportedMediaType(ApiError):
    status = 415
    type = "invalid_request_error"


class HeadersTooLarge(ApiError):
    status = 431
    type = "invalid_request_error"


class TryAgain(ApiError):
    """The same request may well succeed in a moment."""

    status = 503

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"}


class Overloaded(TryAgain):
    """The queue is full: nothing was accepted."""

    code = "overloaded"


class ShuttingDown(TryAgain):
    """The server finishes what it has begun and takes nothing new."""

    code = "shutting_down"


class NotReady(TryAgain):
    """No token can be made at present."""

    code = "not_ready"


class OutOfMemory(TryAgain):
    """The step that computed this request ran out of memory; the engine goes on."""

    code = "out_of_memory"


class TimedOut(ApiError):
    """The request took longer than the server allows one to."""

    status = 504
    code = "timeout"


class EngineDead(ApiError):
    """The engine process is gone; the server is about to go too."""

    status = 503
    code = "engine_dead"


class GenerationFailed(ApiError):
    """The engine could not compute this one request."""

    code = "generation_failed"


@contextmanager
def renamed(fields: Mapping[str, str]) -> Generator[None]:
    """An error inside names its field as this API's clients know it."""
    try:
        yield
    except ApiError as error:
        if error.param is not None and error.param in fields:
            error.message = error.message.replace(error.param, fields[error.param], 1)
            error.param = fields[error.param]
        raise
