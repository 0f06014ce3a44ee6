"""The types of separate predictors, by the name that stands in an artifact's config.json."""

from __future__ import annotations

from .predictor import LowRankPredictor, OraclePredictor, SeparatePredictor
from .sketch import SketchPredictor

PREDICTORS: dict[str, type[SeparatePredictor]] = {
    "low_rank": LowRankPredictor,
    "sketch": SketchPredictor,
    "oracle": OraclePredictor,
}
