"""The K/V pages as tensors, and how many of them the machine can hold."""

from __future__ import annotations

import psutil
import torch

from ..models.attention import LayerCache
from ..models.config import ModelConfig, ModelError
from .config import EngineConfig

CPU_SHARE, CPU_LIMIT = 0.25, 4 << 30  # of the memory that is free at start, and at most
GPU_SHARE = 0.9  # of the memory that is free once the weights are loaded


def allocate(
    config: ModelConfig,
    num_pages: int,
    page_size: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    summaries: bool = False,
) -> list[LayerCache]:
    """Each layer's K/V, and the summaries of its pages where they are to be kept.

    On a CPU untouched pages take no memory.
    """
    tokens = [page_size, page_size, *([2] if summaries else [])]
    shapes = [(num_pages, config.num_kv_heads, n, config.head_dim) for n in tokens]
    return [
        LayerCache(*(torch.empty(shape, device=device, dtype=dtype) for shape in shapes))
        for _ in range(config.num_layers)
    ]


def choose_num_pages(
    config: EngineConfig,
    model: ModelConfig,
    max_model_len: int,
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """As many pages as were asked for, or as memory allows and all rows at full length can use."""
    # a summary is two keys beside the keys and values of a page
    num_tokens = config.page_size + (1 if config.may_choose_pages else 0)
    page_bytes = model.kv_bytes_per_token * dtype.itemsize * num_tokens
    if config.num_pages is not None:
        return config.num_pages
    if config.kv_cache_bytes is not None:
        num_pages = config.kv_cache_bytes // page_bytes
    else:
        wanted = config.max_num_seqs * -(-max_model_len // config.page_size)
        num_pages = min(wanted, _free_bytes(device) // page_bytes)
    if num_pages < 1:
        raise ModelError(
            f"no memory for one K/V page of {page_bytes / 2**20:.1f} MiB on {device}; "
            "give the cache more or load a smaller model"
        )
    return num_pages


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE)
    return min(int(psutil.virtual_memory().available * CPU_SHARE), CPU_LIMIT)
