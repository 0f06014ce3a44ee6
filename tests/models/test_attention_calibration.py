"""From which context on pages are chosen: where it was measured to be faster, and for good."""

import published
import pytest
import torch

from turbosparse.engine import kv_cache
from turbosparse.models import attention_calibration, calibration
from turbosparse.models.attention import Attention
from turbosparse.models.load import load


@pytest.mark.parametrize(
    ("seconds", "want"),
    [
        ({128: (1.0, 3.0), 256: (2.0, 3.0), 512: (4.0, 3.0), 1000: (8.0, 3.0)}, 511),
        ({96: (4.0, 3.0), 256: (4.0, 3.0), 1000: (4.0, 3.0)}, 95),
        ({128: (4.0, 3.0), 256: (3.0, 3.0), 1000: (4.0, 3.0)}, 999),  # a lucky run is no reason
        ({128: (1.0, 3.0), 1000: (2.0, 3.0)}, 4000),  # never, as far as there are pages
        ({}, 64),
    ],
)
def test_a_context_is_read_in_full_unless_choosing_was_found_to_be_faster(seconds, want):
    assert attention_calibration.crossover(seconds, 64, 4000) == want


def test_both_ways_are_timed_at_every_length_that_there_are_pages_for(tmp_path, monkeypatch):
    directory = published.make(tmp_path / "m", "bamboo")
    decoder = load(directory, torch.device("cpu"), torch.float32).decoder
    caches = kv_cache.allocate(
        decoder.config, 50, 4, torch.device("cpu"), torch.float32, summaries=True
    )
    timed = []
    attend = Attention.attend

    def watched(self, qkv, rope, cache, batch):
        timed.append((batch.context_lens[0], batch.budgets is not None))
        return attend(self, qkv, rope, cache, batch)

    def seconds(run) -> float:
        """Choosing takes 5, reading all of a context one a token."""
        run()
        context, chooses = timed[-1]
        return 50.0 if chooses else context

    monkeypatch.setattr(Attention, "attend", watched)
    monkeypatch.setattr(attention_calibration, "device_seconds", seconds)
    monkeypatch.setattr(calibration, "SECONDS", 0)
    found = attention_calibration.full_up_to(decoder, caches, 16, 256, graphs=False)
    lengths = (24, 32, 48, 64, 96, 128, 192, 200)
    assert set(timed) == {(n, chooses) for n in lengths for chooses in (False, True)}
    assert found == 63, "a context of 48 takes 48, and choosing 50"
