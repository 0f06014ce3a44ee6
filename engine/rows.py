"""One permanent device row per live request: what a step gathers from and writes back to.

A row is written when its request is admitted and when it gets pages; nothing moves between rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .request import Request
from .transfer import to_device


class Rows:
    """The rows' tensors. Counts of sampled tokens exist only once a request asks for penalties."""

    def __init__(
        self, num_rows: int, max_pages: int, vocab_size: int, device: torch.device
    ) -> None:
        self.device = device
        self.vocab_size = vocab_size
        self.last_token = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.page_tables = np.zeros((num_rows, max_pages), dtype=np.int32)
        self.num_pages = [0] * num_rows
        self.free = list(range(num_rows - 1, -1, -1))
        self._counts: Tensor | None = None  # [rows, vocab] int32, of the output so far
        self._in_prompt: Tensor | None = None  # [rows, vocab] bool

    def admit(self, request: Request) -> None:
        """Give the request a row and write what later steps read from it."""
        assert request.row is None, request.id
        request.row = row = self.free.pop()
        self.num_pages[row] = 0
        if request.sampling.has_penalties:
            self._write_counts(row, request)

    def release(self, request: Request) -> None:
        if request.row is not None:
            self.free.append(request.row)
            request.row = None

    def write_pages(self, request: Request) -> None:
        """Append the pages that the request got since the last step."""
        row = row_of(request)
        start = self.num_pages[row]
        if start != len(request.pages):
            self.page_tables[row, start : len(request.pages)] = request.pages[start:]
            self.num_pages[row] = len(request.pages)

    def store_sampled(self, rows: Tensor, token_ids: Tensor) -> None:
        """Leave what was sampled for these rows where the next step finds it, without asking the
        host for it; both [S] int64."""
        self.last_token[rows] = token_ids

    def penalty_counts(self, row: int) -> tuple[Tensor, Tensor]:
        """(output counts [vocab] int32, in prompt [vocab] bool) of a row."""
        counts, in_prompt = self._tables()
        return counts[row], in_prompt[row]

    def count_sampled(self, rows: list[int], token_ids: Tensor) -> None:
        """Note what these rows have just sampled, without asking the host for the ids."""
        counts, _ = self._tables()
        index = to_device(rows, self.device)
        one = torch.ones_like(token_ids, dtype=torch.int32)
        counts.index_put_((index, token_ids), one, accumulate=True)

    def _write_counts(self, row: int, request: Request) -> None:
        counts, in_prompt = self._tables()
        token_ids, num_prompt = request.token_ids, request.num_prompt_tokens
        in_prompt[row] = False
        in_prompt[row].index_fill_(0, to_device(token_ids[:num_prompt], self.device), True)
        output = np.bincount(
            np.array(token_ids[num_prompt:], dtype=np.int64), minlength=self.vocab_size
        )
        counts[row] = to_device(output.astype(np.int32), self.device)

    def _tables(self) -> tuple[Tensor, Tensor]:
        if self._counts is None or self._in_prompt is None:
            shape = (len(self.num_pages), self.vocab_size)
            self._counts = torch.zeros(shape, dtype=torch.int32, device=self.device)
            self._in_prompt = torch.zeros(shape, dtype=torch.bool, device=self.device)
        return self._counts, self._in_prompt


def row_of(request: Request) -> int:
    """The row of a request that has been admitted."""
    assert request.row is not None, request.id
    return request.row
