"""uvicorn's HTTP/1.1 protocol, with a limit on what comes before a body, and our error object.

uvicorn limits headers in its slower, pure Python protocol only; this one would collect for ever.
"""

from __future__ import annotations

import json
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import ApiError, BadRequest, HeadersTooLarge


def limited_protocol(max_header_bytes: int) -> type[HttpToolsProtocol]:
    """The protocol class that refuses a request line and headers of more bytes with 431."""

    class LimitedProtocol(HttpToolsProtocol):
        _num_header_bytes = 0  # of the request that is being read
        _in_headers = True

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._num_header_bytes, self._in_headers = 0, True

        def on_url(self, url: bytes) -> None:
            super().on_url(url)
            self._count(len(url))

        def on_header(self, name: bytes, value: bytes) -> None:
            super().on_header(name, value)
            self._count(len(name) + len(value) + len(b": \r\n"))

        def on_headers_complete(self) -> None:
            self._in_headers = False
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return  # what a refused client still sends
            super().data_received(data)
            # A header without an end reaches no callback: count what was read without one.
            self._unfinished = len(data) + self._unfinished if self._in_headers else 0
            if self._unfinished > max_header_bytes and not self.transport.is_closing():
                self._refuse(too_large())

        _unfinished = 0

        def _count(self, num_bytes: int) -> None:
            self._num_header_bytes += num_bytes
            if self._num_header_bytes > max_header_bytes:
                raise ValueError  # the parser stops, and asks send_400_response to answer

        def send_400_response(self, msg: str) -> None:
            too_many = self._num_header_bytes > max_header_bytes
            self._refuse(too_large() if too_many else BadRequest("this is not an HTTP request"))

        def _refuse(self, error: ApiError) -> None:
            body = json.dumps(error.body()).encode()
            head = (
                f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    def too_large() -> HeadersTooLarge:
        return HeadersTooLarge(f"the request line and headers exceed {max_header_bytes:,} bytes")

    return LimitedProtocol
