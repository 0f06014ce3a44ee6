"""Token ids to text that may be shown: whole characters, and nothing that may be a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from .tokenizer import Tokenizer


class Detokenizer:
    """One answer's text as it grows.

    Holds back half a character, and an end that could be the beginning of a stop string; `finish`
    gives back what was held. Once `stopped`, nothing more comes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self.matched: str | None = None  # the stop string that ended it
        self._tokenizer = tokenizer
        self._stream = tokenizer.stream(skip_special_tokens=skip_special_tokens)
        self._skip = skip_special_tokens
        self._undecoded: list[int] = []  # tokens of a character that is not whole yet
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._held: str = ""

    @property
    def stopped(self) -> bool:
        return self.matched is not None

    def add(self, token_id: int) -> str:
        """The text that this token sets free."""
        text = self._stream.step(self._tokenizer.backend, token_id)
        if text is None:
            self._undecoded.append(token_id)
            return ""
        self._undecoded.clear()
        return self._release(text) if self._stop else text

    def finish(self) -> str:
        """The rest: an unfinished character becomes U+FFFD, a begun stop string is text."""
        if self.stopped:
            return ""
        rest = ""
        if self._undecoded:
            rest = self._tokenizer.decode(self._undecoded, skip_special_tokens=self._skip)
            self._undecoded.clear()
        text = self._release(rest) if self._stop else rest
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        text = self._held + text
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            # the one that was complete first; of two that end together, the longer
            at, stop = min(found, key=lambda match: (match[0] + len(match[1]), match[0]))
            self.matched, self._held = stop, ""
            return text[: at + len(stop)] if self._include_stop else text[:at]
        keep = self._length_to_hold(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _length_to_hold(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = min(len(text), max(map(len, self._stop)) - 1)
        for length in range(longest, 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0
