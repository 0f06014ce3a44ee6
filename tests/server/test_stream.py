"""Streams end with an event, whatever happens inside them."""

import logging

from turbosparse.server import stream


class Pieces:
    """A generation of two pieces, that remembers whether it was closed."""

    is_closed = False

    async def pieces(self):
        yield "one"
        yield "two"

    def close(self):
        self.is_closed = True


class Broken:
    """A dialect that cannot say the second piece."""

    def opening(self):
        return [b"opening"]

    def piece(self, piece):
        return {"one": b"one"}[piece].upper()

    def closing(self):
        return b"closing"

    def failure(self, error):
        return f"{error.status} {error.code}".encode()


async def test_a_fault_of_ours_ends_a_stream_with_an_error_event(caplog):
    """It cut the connection once, which a client cannot tell from a network that failed."""
    generation = Pieces()
    with caplog.at_level(logging.ERROR):
        events = [event async for event in stream._events(generation, Broken())]
    assert events == [b"opening", b"ONE", b"500 generation_failed"]
    assert generation.is_closed
    assert "KeyError: 'two'" in caplog.text
