"""Grammars that an answer must follow: compiled on a thread, kept, and asked for the next tokens.

Knows token ids; knows no tensor and no JSON. The engine is llguidance: a grammar is text
in its own format, which whoever submits a request has made and checked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

MAX_COMPILED = 64  # grammars kept for the next request that brings the same
WORD = 32  # tokens in one word of a mask
EXECUTOR = LLExecutor()  # threads for the masks of one step
FEW = 8  # masks that are made sooner than threads wake, who on a CPU also take a kernel's core


class GrammarError(Exception):
    """The grammar cannot be followed: it is not valid, or too costly; the message says which."""


class Constraint:
    """One answer's place in its grammar."""

    def __init__(self, compiled: Future[LLMatcher]) -> None:
        self._compiled = compiled
        self._matcher: LLMatcher | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the grammar is compiled, for better or worse."""
        return self._compiled.done()

    def start(self) -> None:
        """Stand at the grammar's beginning, once it is ready; raises GrammarError."""
        self._matcher = self._compiled.result().deep_copy()

    @property
    def matcher(self) -> LLMatcher:
        assert self._matcher is not None, "it has not started"
        return self._matcher

    def advance(self, token_id: int) -> None:
        """Take a token that the mask allowed; raises GrammarError if a limit was passed."""
        self.matcher.consume_token(token_id)
        check(self.matcher)


class Grammars:
    """Compiles for one tokenizer; the same grammar is compiled once."""

    def __init__(self, tokenizer: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._path = tokenizer
        self._vocab_size = vocab_size
        self._eos = list(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None  # read when the first grammar comes
        self._thread = ThreadPoolExecutor(1, "grammars")
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()

    def constraint(self, grammar: str) -> Constraint:
        """At once; compiled soon, if it has not been before."""
        found = self._compiled.get(grammar)
        if found is None:
            found = self._compiled[grammar] = self._thread.submit(self._compile, grammar)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return Constraint(found)

    def _compile(self, grammar: str) -> LLMatcher:
        if self._tokenizer is None:
            try:
                self._tokenizer = LLTokenizer(str(self._path), self._vocab_size, self._eos)
            except ValueError as error:
                raise GrammarError(f"it has no tokenizer: {error}") from error
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        check(matcher)
        return matcher


def check(matcher: LLMatcher) -> None:
    """Raise GrammarError for a matcher that has given up."""
    if matcher.is_error():
        raise GrammarError(matcher.get_error())


def masks(constraints: Sequence[Constraint], vocab_size: int) -> NDArray[np.int32]:
    """Which tokens each may have next: [C, ceil(vocab / 32)], bit i of word w is token 32 w + i."""
    found = np.zeros((len(constraints), -(-vocab_size // WORD)), np.int32)
    if len(constraints) <= FEW:
        for i, constraint in enumerate(constraints):
            fill_next_token_bitmask(constraint.matcher, found, i)
    else:
        places = [(constraint.matcher, i) for i, constraint in enumerate(constraints)]
        fill_next_token_bitmask_par(EXECUTOR, places, found)
    return found
