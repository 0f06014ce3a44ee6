"""The pool of K/V pages: who holds which, and which finished pages hold a known prefix.

Knows ids, counts and hashes; knows no tensor. Only full pages whose tokens are computed and known
are published, and a full page is never written again, so sharing needs no copy.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import blake2b

from .request import Request


def page_hashes(
    token_ids: list[int], page_size: int, known: list[bytes], salt: bytes = b""
) -> list[bytes]:
    """Chained hashes of the full pages of `token_ids`, continuing after `known`.

    A page's hash covers the salt and every token before it, so equal hashes mean equal K/V.
    """
    hashes = list(known)
    for start in range(len(known) * page_size, len(token_ids) - page_size + 1, page_size):
        parent = hashes[-1] if hashes else salt
        tokens = array("q", token_ids[start : start + page_size]).tobytes()
        hashes.append(blake2b(parent + tokens, digest_size=16).digest())
    return hashes


class PagePool:
    """`num_pages` pages of `page_size` tokens, reference-counted.

    A freed page keeps its content and its hash until it is needed for something else: the pages
    without a hash first, then the one freed longest ago.
    """

    def __init__(self, num_pages: int, page_size: int, prefix_caching: bool = True) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.prefix_caching = prefix_caching
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))
        self._num_holders = [0] * num_pages
        self._hash_of: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_held(self) -> int:
        return self.num_pages - len(self._free)

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def match(self, hashes: list[bytes]) -> list[int]:
        """The pages that hold the longest known prefix of this chain."""
        pages: list[int] = []
        for digest in hashes:
            page = self._page_of.get(digest)
            if page is None:
                break
            pages.append(page)
        return pages

    def can_allocate(self, num_pages: int, shared: list[int] | None = None) -> bool:
        """Whether that many pages are free once `shared` (a match) is taken too."""
        revived = sum(self._num_holders[page] == 0 for page in shared or ())
        return num_pages + revived <= len(self._free)

    def share(self, request: Request, pages: list[int]) -> None:
        """Make matched pages the start of a request that holds none yet."""
        assert not request.pages, (request.id, request.pages)
        for page in pages:
            if self._num_holders[page] == 0:
                del self._free[page]
            self._num_holders[page] += 1
        request.pages.extend(pages)

    def allocate(self, request: Request, num_pages: int) -> None:
        """Append fresh pages to a request."""
        assert num_pages <= len(self._free), (request.id, num_pages, len(self._free))
        for _ in range(num_pages):
            page, _ = self._free.popitem(last=False)
            self._forget(page)
            self._num_holders[page] = 1
            request.pages.append(page)

    def free(self, request: Request) -> None:
        """Let go of all pages; the last of them first, so that prefixes outlive their endings."""
        for page in reversed(request.pages):
            self._num_holders[page] -= 1
            assert self._num_holders[page] >= 0, (request.id, page)
            if self._num_holders[page] == 0:
                self._free[page] = None
                if self._hash_of[page] is None:
                    self._free.move_to_end(page, last=False)
        request.pages.clear()

    def publish(self, page: int, digest: bytes) -> None:
        """Offer a full, computed page to later requests, unless another already offers the same."""
        if self.prefix_caching and self._hash_of[page] is None and digest not in self._page_of:
            self._hash_of[page] = digest
            self._page_of[digest] = page

    def reset(self) -> None:
        """Forget every prefix; pages in use stay in use."""
        for page in list(self._page_of.values()):
            self._forget(page)

    def check(self, live: list[Request]) -> None:
        """Assert that the books balance against the requests that hold pages."""
        holders = [0] * self.num_pages
        for request in live:
            assert len(set(request.pages)) == len(request.pages), request.id
            for page in request.pages:
                holders[page] += 1
        assert holders == self._num_holders, (holders, self._num_holders)
        assert set(self._free) == {p for p, n in enumerate(holders) if n == 0}
        for digest, page in self._page_of.items():
            assert self._hash_of[page] == digest, page

    def _forget(self, page: int) -> None:
        digest = self._hash_of[page]
        if digest is not None:
            del self._page_of[digest]
            self._hash_of[page] = None
