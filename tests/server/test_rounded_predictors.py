"""A model whose own predictors were rounded: what may be asked of it."""

import math
from dataclasses import replace

import pytest
from echo_engine import build

from turbosparse.engine.config import EngineConfig
from turbosparse.engine.messages import PredictorInfo
from turbosparse.server.errors import BadRequest
from turbosparse.server.sampling import threshold
from turbosparse.server.schemas import Sparsity

_, INFO = build(EngineConfig(model="echo"))
ROUNDED = replace(INFO, predictors=PredictorInfo("low_rank", [0.0], rounded_to="float8"))
SEPARATE = replace(INFO, predictors=PredictorInfo("low_rank", [0.5], True, rounded_to="float8"))


@pytest.mark.parametrize(
    ("info", "asked", "want"),
    [
        (ROUNDED, {}, None),
        (ROUNDED, {"report": True}, None),
        (ROUNDED, {"mode": "approximate"}, None),
        (ROUNDED, {"mode": "approximate", "threshold": 0.3}, 0.3),
        (SEPARATE, {"mode": "approximate"}, None),
        (SEPARATE, {"mode": "exact"}, -math.inf),
        (INFO, {"mode": "exact"}, None),
    ],
)
def test_what_a_request_chooses_by(info, asked, want):
    assert threshold(Sparsity(**asked), info) == want


def test_the_mask_that_was_rounded_away_is_refused():
    said = r"sparsity\.mode: exact is .* rounded to float8 \(--predictor-dtype\)"
    with pytest.raises(BadRequest, match=said) as refused:
        threshold(Sparsity(mode="exact"), ROUNDED)
    assert refused.value.param == "sparsity.mode"
    with pytest.raises(BadRequest, match=r"sparsity\.threshold is missing: this model's own"):
        threshold(Sparsity(mode="approximate"), INFO)
