"""Running a loaded model over one whole sequence, as tests need it: pages in odd order."""

import torch

from turbosparse.models.attention import LayerCache
from turbosparse.models.batch import FfnMode, ForwardBatch
from turbosparse.models.config import ModelConfig

PAGE = 4


def make_caches(config: ModelConfig, num_pages: int) -> list[LayerCache]:
    shape = (num_pages, config.num_kv_heads, PAGE, config.head_dim)
    return [
        LayerCache(torch.full(shape, torch.nan), torch.full(shape, torch.nan))
        for _ in range(config.num_layers)
    ]


def batch_of(
    ids: list[int], start: int, mode: FfnMode, num_pages: int, active: torch.Tensor | None = None
) -> ForwardBatch:
    """The tokens ids[start:] of one request whose first `start` tokens are in the cache."""
    table = torch.arange(num_pages - 1, -1, -1, dtype=torch.int32)[None]  # backwards
    positions = torch.arange(start, len(ids))
    return ForwardBatch(
        token_ids=torch.tensor(ids[start:]),
        positions=positions,
        slots=table[0, positions // PAGE].long() * PAGE + positions % PAGE,
        request_ids=torch.zeros_like(positions),
        page_tables=table,
        query_lens=(len(ids) - start,),
        context_lens=(len(ids),),
        sample_at=torch.arange(len(ids) - start),
        ffn_mode=mode,
        active=active,
    )


def logits_of(decoder, ids: list[int], mode: FfnMode, chunk: int | None = None) -> torch.Tensor:
    """Logits of every position, computed in chunks over a fresh cache: [T, vocab]."""
    num_pages = -(-len(ids) // PAGE)
    caches = make_caches(decoder.config, num_pages)
    chunk = chunk or len(ids)
    return torch.cat(
        [
            decoder(batch_of(ids[: start + chunk], start, mode, num_pages), caches)
            for start in range(0, len(ids), chunk)
        ]
    )
