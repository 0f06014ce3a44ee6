"""Exact or approximate by request: each computes its own function in the same batch."""

import math

import planted
import published
import pytest
from scripted import run
from test_predictors import write_predictors
from test_runner import BOTH, PROMPT, greedy, make, others

from turbosparse.engine.config import EngineConfig
from turbosparse.engine.messages import PredictorInfo
from turbosparse.engine.runner import build_runner
from turbosparse.models.tools import train_predictor
from turbosparse.models.tools.imitation import Recipe

EXACT = -math.inf


@pytest.fixture(scope="module")
def bamboo(tmp_path_factory):
    return published.make(tmp_path_factory.mktemp("bamboo") / "model", "bamboo")


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictors") / "low"
    return str(write_predictors(folder, published.config_of("bamboo"), threshold=0.1))


@pytest.fixture(scope="module", params=["turbosparse-mistral", "turbosparse-mixtral"])
def turbosparse(request, tmp_path_factory):
    return published.make(tmp_path_factory.mktemp("turbo"), request.param)


@BOTH
def test_exact_and_approximate_in_one_batch(bamboo, predictors, overlap):
    exact, approximate = make(bamboo), make(bamboo, predictors=predictors)
    for core in (exact, approximate):
        core.add(greedy("a", PROMPT))
    alone = {"exact": run(exact).tokens["a"], "approximate": run(approximate).tokens["a"]}
    assert alone["exact"] != alone["approximate"]
    core = make(bamboo, num_pages=800, predictors=predictors, overlap=overlap)
    for i, prompt in enumerate(others(6)):
        core.add(greedy(f"x{i}", prompt, 9, threshold=i / 10))
    core.add(greedy("exact", PROMPT, threshold=EXACT))
    core.add(greedy("approximate", PROMPT))
    got = run(core)
    assert {name: got.tokens[name] for name in alone} == alone
    assert set(got.cached.values()) == {0}, "K/V of one function is no prefix of another's"


def fractions(core) -> dict[str, float]:
    found = {}
    for _ in range(200):
        if not core.has_work:
            return found
        for output in core.step().outputs:
            if output.finish is not None:
                found[output.id] = output.active_fraction
    raise AssertionError("it does not end")


@BOTH
def test_a_request_learns_what_share_of_the_neurons_it_kept(turbosparse, overlap):
    """The same share alone and among others; less of them with a higher threshold."""

    def told(company: int) -> dict[str, float]:
        core = make(turbosparse, num_pages=800, overlap=overlap)
        for i, prompt in enumerate(others(company)):
            core.add(greedy(f"x{i}", prompt, 9))
        for name, threshold in (("own", None), ("high", 1.0), ("all", EXACT)):
            core.add(greedy(name, PROMPT, 12, threshold=threshold, report_active=True))
        return fractions(core)

    found = told(0)
    assert 0 < found["high"] < found["own"] < found["all"] == pytest.approx(1)
    among = told(7)
    assert {name: among[name] for name in found} == pytest.approx(found)
    assert among["x0"] is None, "it did not ask"


def test_the_share_is_that_of_the_whole_request(turbosparse):
    """Held against the engine's own gauge, which a request that asks makes it read every step."""
    core = make(turbosparse)
    core.add(greedy("a", PROMPT, 5, report_active=True))
    steps = [core.step() for _ in range(5)]
    weights = [len(PROMPT), 1, 1, 1, 1]
    mean = sum(
        step.stats.activity.active_fraction * weight
        for step, weight in zip(steps, weights, strict=True)
    ) / sum(weights)
    assert steps[-1].outputs[0].active_fraction == pytest.approx(mean)


def test_prefixes_are_shared_within_one_salt(turbosparse):
    core = make(turbosparse)
    cached = {}
    for name, salt in (("a", "one"), ("b", "two"), ("c", ""), ("d", "one"), ("e", "")):
        core.add(greedy(name, PROMPT, 2, cache_salt=salt))
        cached |= run(core).cached
    assert cached == {"a": 0, "b": 0, "c": 0, "d": 20, "e": 20}


@pytest.mark.parametrize("kind", ["low_rank", "sketch"])
def test_trained_predictors_serve_each_request_at_its_own_threshold(tmp_path, kind):
    """Layers have thresholds of their own; a request that has one brings it to all of them."""
    model, folder = planted.make(tmp_path / "model"), tmp_path / "made"
    recipe = Recipe(kind=kind, rank=16, epochs=1, recall=0.7)
    text = planted.write_text(tmp_path / "words.txt", 400)
    train_predictor.train_predictor(model, folder, text, recipe, window=16, device="cpu")
    options = {"device": "cpu", "num_pages": 8, "page_size": 4, "predictors": str(folder)}
    _, info = build_runner(EngineConfig(model=str(model), **options))
    assert len(set(info.predictors.thresholds)) == planted.LAYERS
    assert (info.predictors.type, info.predictors.separate) == (kind, True)
    assert info.predictors.measured["num_tokens"] > 0
    assert f"separate {kind} predictors" in info.approximation

    def served(names: list[str]) -> tuple[dict[str, list[int]], dict[str, float]]:
        """The text of each request, and the share of neurons that it kept."""
        found = []
        for look in (lambda core: run(core).tokens, fractions):
            core = make(model, num_pages=800, predictors=str(folder))
            for name in names:
                limit = {"own": None, "nothing": 1e6, "all": EXACT}[name]
                core.add(greedy(name, PROMPT, 8, threshold=limit, report_active=True))
            found.append(look(core))
        return found[0], found[1]

    texts, kept = served(["own", "nothing", "all"])
    for name in texts:
        alone = served([name])
        assert alone[0][name] == texts[name]
        assert alone[1][name] == pytest.approx(kept[name])
    assert kept["nothing"] == 0 < kept["own"] < kept["all"] == pytest.approx(1)
    exact = make(model)
    exact.add(greedy("a", PROMPT, 8))
    assert run(exact).tokens["a"] == texts["all"]


@BOTH
def test_rounded_predictors_choose_the_same_in_any_company(turbosparse, overlap):
    """The function is another one, but it is one; and the engine says so."""
    _, info = build_runner(
        EngineConfig(model=str(turbosparse), device="cpu", num_pages=20, predictor_dtype="float8")
    )
    assert not info.exact
    assert info.approximation.startswith("its own predictors, rounded to float8; on 64 random")
    assert info.predictors == PredictorInfo("low_rank", [0.0], rounded_to="float8")
    cores = [
        make(turbosparse, num_pages=800, overlap=overlap, predictor_dtype=name)
        for name in ("float8", "float8", "auto")
    ]
    for i, prompt in enumerate(others(6)):
        cores[1].add(greedy(f"x{i}", prompt, 9))
    for core in cores:
        core.add(greedy("a", PROMPT))
    alone, among, exact = (run(core).tokens["a"] for core in cores)
    assert alone == among
    assert alone != exact
