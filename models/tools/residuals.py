"""What a decoder's FFNs read on windows of text, one layer after the other: two buffers in host
memory, however many layers there are."""

from __future__ import annotations

import psutil
import torch
from torch import Tensor, nn

from ..config import ModelError
from ..decoder import Decoder
from ..sequence import sequence_batch, sequence_cache

SPARE = 0.8  # of the free memory that may be taken


class Residuals:
    """The residual streams of W windows of L tokens, as far as some layer."""

    def __init__(self, decoder: Decoder, windows: Tensor) -> None:
        """windows [W, L] int64; raises ModelError where memory is too small."""
        like, shape = decoder.embedding, (*windows.shape, decoder.config.hidden_size)
        bits = decoder.config.num_neurons  # a layer's truth, beside the two buffers
        _check_memory(windows.numel() * (2 * shape[-1] * like.element_size() + bits // 8))
        self._decoder = decoder
        self._cache = sequence_cache(decoder, windows.shape[1])[0]
        self._windows = windows
        self._streams = torch.empty(shape, dtype=like.dtype)
        self._read = torch.empty(shape, dtype=like.dtype)
        for ids, stream in zip(windows, self._streams, strict=True):
            stream.copy_(decoder.embed(ids.to(like.device)))

    @torch.no_grad()
    def advance(self, layer: int) -> None:
        """Through one layer, the next. Raises ModelError where its numbers are none."""
        decoder, block = self._decoder, self._decoder.layers[layer]
        assert decoder.rope is not None
        device = decoder.embedding.device
        read: list[Tensor] = []

        def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            read.append(args[0])

        hook = block.get_submodule("ffn").register_forward_pre_hook(look)
        try:
            for i, stream in enumerate(self._streams):
                batch = sequence_batch(self._windows[i].to(device))
                out = block(stream.to(device), decoder.rope, self._cache, batch)
                self._read[i].copy_(read.pop())
                stream.copy_(out)
        finally:
            hook.remove()
        if not bool(self._streams.isfinite().all()):
            raise ModelError(f"layer {layer} makes numbers that are not finite on this text")

    def read(self, first: int = 0, stop: int | None = None) -> Tensor:
        """What the last layer's FFN read of some windows, before its norm: [tokens, hidden]."""
        return self._read[first:stop].flatten(0, 1)


def _check_memory(needed: int) -> None:
    free = psutil.virtual_memory().available
    if needed > SPARE * free:
        raise ModelError(
            f"--tokens: {needed / 2**30:.1f} GiB of memory are needed for so many, "
            f"{free / 2**30:.1f} GiB are free"
        )
