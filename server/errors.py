"""What a client can be told went wrong: one tree, each leaf an HTTP status and OpenAI's codes.

ApiError > BadRequest (> TooLong) · NotFound (> ModelNotFound) · MethodNotAllowed
         · PayloadTooLarge · UnsupportedMediaType · Overloaded · EngineDead · GenerationFailed
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


class Overloaded(ApiError):
    """The queue is full: nothing was accepted, and trying again soon is right."""

    status = 503
    code = "overloaded"

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"}


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
