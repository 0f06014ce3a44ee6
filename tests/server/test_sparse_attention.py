"""How much of its context a request reads: its own words, the server's, or all."""

from dataclasses import replace

import pytest
from echo_engine import build
from test_completions import complete

from turbosparse.engine.config import EngineConfig
from turbosparse.engine.request import PageChoice
from turbosparse.server.errors import BadRequest
from turbosparse.server.page_choice import page_choice
from turbosparse.server.schemas import Sparsity

_, INFO = build(EngineConfig(model="echo"))
BOUND = replace(INFO, attention=replace(INFO.attention, mode="bound", beyond=700))
GATE = replace(INFO, attention=replace(INFO.attention, mode="gate", modes=["full", "gate"]))
FULL = replace(INFO, attention=None)


@pytest.mark.parametrize(
    ("info", "asked", "want"),
    [
        (FULL, {}, None),
        (FULL, {"attention": "full"}, None),
        (INFO, {}, None),
        (INFO, {"report": True}, None),
        (INFO, {"attention": "bound"}, PageChoice(512, beyond=512)),
        (INFO, {"attention": "bound", "page_budget": 65}, PageChoice(65, beyond=65)),
        (INFO, {"attention": "bound", "page_share": 0.9}, PageChoice(512, 0.9)),
        (BOUND, {}, PageChoice(512, beyond=700)),
        (BOUND, {"page_budget": 1024}, PageChoice(1024, beyond=1024)),
        (BOUND, {"page_share": 0.5}, PageChoice(512, 0.5, beyond=700)),
        (BOUND, {"attention": "full"}, None),
        (BOUND, {"mode": "exact"}, None),
        (BOUND, {"mode": "approximate", "threshold": 1.0}, PageChoice(512, beyond=700)),
        (GATE, {}, PageChoice(512, gated=True, beyond=512)),
    ],
)
def test_a_request_says_or_the_server_does(info, asked, want):
    assert page_choice(Sparsity(**asked), info) == want


@pytest.mark.parametrize(
    ("info", "asked", "message"),
    [
        (FULL, {"attention": "bound"}, "it has to be started with --page-budget"),
        (INFO, {"attention": "gate"}, "it was not started with --attention-gates"),
        (INFO, {"page_budget": 512}, "page_budget is only allowed with attention: bound or gate"),
        (BOUND, {"mode": "exact", "page_share": 0.5}, "page_share is only allowed with attention"),
        (BOUND, {"mode": "exact", "attention": "bound"}, "attention=bound is not exact"),
        (BOUND, {"page_budget": 63}, "page_budget=63 is less than 64: the first page of 16"),
        (BOUND, {"page_budget": 2001}, "page_budget=2001 is more than the context of 2000"),
    ],
)
def test_what_would_be_ignored_or_cannot_be_is_refused(info, asked, message):
    with pytest.raises(BadRequest, match=message):
        page_choice(Sparsity(**asked), info)


def test_over_http(server):
    fields = {"sparsity": {"attention": "bound", "page_budget": 64}}
    assert complete(server, "say:abc", **fields)["choices"][0]["text"] == "abc"
    card = server.client.get("/v1/models").json()["data"][0]
    assert card["attention"]["modes"] == ["full", "bound"]
    assert server.client.get("/health").json()["engine"]["attention"] == card["attention"]
    assert "turbosparse_attention_pages_read_fraction" in server.client.get("/metrics").text
