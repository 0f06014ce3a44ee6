"""Models whose config.json holds a recipe: drawn on the device, planted as trained models are."""

import json
from dataclasses import replace

import decode
import pytest
import torch

from turbosparse.models.config import ModelError
from turbosparse.models.kernels import ops
from turbosparse.models.load import LoadedModel, load
from turbosparse.models.random_weights import blocks
from turbosparse.models.recipe import Recipe, read
from turbosparse.models.sequence import observe
from turbosparse.models.tools import shapes, synthetic
from turbosparse.models.tools.shapes import Shape

CPU = torch.device("cpu")
WIDE = Shape(hidden=64, layers=2, neurons=1024, vocab=500, heads=4, kv_heads=2, positions=2048)
UNION = {1: 0.068, 2: 0.130, 4: 0.233, 8: 0.394, 16: 0.592, 32: 0.775, 64: 0.892}  # H200 notes


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As for torch: two that share a core would wait for each other."""
    ops.set_num_threads(1, ops.select(CPU, torch.float32)[0])


def drawn(out, family, shape=WIDE, *, density=0.1, dtype=torch.float32, seed=0) -> LoadedModel:
    shape = shape.of(family)
    recipe = shapes.recipe_of(family, shape, density, seed)
    shapes.describe(out, family, shape, "float32", recipe)
    return load(out, CPU, dtype)


def other_tokens(count: int) -> torch.Tensor:
    return torch.randint(0, WIDE.vocab, (count,), generator=torch.Generator().manual_seed(77))


def masks(model: LoadedModel, count: int) -> list[torch.Tensor]:
    """Of every FFN, an expert's over the tokens that were routed to it: [tokens, N] bool."""
    seen = observe(model.decoder, other_tokens(count))
    return [
        block.predictor.select(residual[places], x[places])
        for layer, (x, residual) in zip(model.decoder.layers, seen.ffn_inputs, strict=True)
        for block, places in blocks(layer.ffn, x)
    ]


@pytest.mark.parametrize("family", shapes.FAMILIES)
def test_what_is_drawn_is_what_is_written(tmp_path, family):
    """One seed, one model, whether its weights go through a file or not."""
    small = replace(WIDE, neurons=80, layers=1)
    model = drawn(tmp_path / "drawn", family, small)
    synthetic.make(tmp_path / "written", family, small)
    written = load(tmp_path / "written", CPU, torch.float32)
    assert model.config == written.config
    assert (model.synthetic is None, written.synthetic is None) == (False, True)
    ours, theirs = (dict(m.decoder.named_parameters()) for m in (model, written))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def test_the_union_grows_as_in_a_trained_model(tmp_path):
    """Seeded. 15 % are granted: thresholds are quantiles over 1024 tokens, of 1024 neurons."""
    model = drawn(tmp_path, "turbosparse-mistral", density=UNION[1])
    found = masks(model, 2048)
    for batch, expected in UNION.items():
        unions = [mask.view(-1, batch, WIDE.neurons).any(1).float().mean() for mask in found]
        assert torch.stack(unions).mean().item() == pytest.approx(expected, rel=0.15), batch


def test_a_deep_model_keeps_the_density_in_any_company(tmp_path):
    """Planted on one sequence, and attention as loud as everything else, the last layers of a deep
    model kept 16 % and more of the neurons for any other sequence: its tokens were all alike."""
    shape = replace(WIDE, layers=12, neurons=256)
    decoder = drawn(tmp_path, "turbosparse-mistral", shape).decoder
    active = observe(decoder, other_tokens(512)).active
    assert active.mean().item() == pytest.approx(0.1, rel=0.1)
    assert active[-4:].mean().item() == pytest.approx(0.1, rel=0.15)
    seen = decode.Step(decoder, 64, 40).look()
    assert seen.active == pytest.approx(0.1, rel=0.1)


def test_each_expert_keeps_the_density_of_the_tokens_that_it_sees(tmp_path):
    """Thresholds are set on some 256 tokens an expert: coarser than without experts."""
    shape = replace(WIDE, layers=1, neurons=512)
    found = masks(drawn(tmp_path, "turbosparse-mixtral", shape, density=0.15), 1024)
    assert len(found) == 8
    assert sum(len(mask) for mask in found) == 2 * 1024
    for mask in found:
        assert mask.float().mean().item() == pytest.approx(0.15, rel=0.35)
    mean = torch.stack([mask.float().mean() for mask in found]).mean().item()
    assert mean == pytest.approx(0.15, rel=0.1)


def test_gates_without_a_predictor_open_for_the_density(tmp_path):
    """In every layer of a deep model, and for tokens that they were not planted on."""
    shape = replace(WIDE, layers=12, neurons=256)
    decoder = drawn(tmp_path, "bamboo", shape, density=0.3).decoder
    seen = observe(decoder, other_tokens(512))
    shares = [
        (x @ layer.ffn.gate_up[:, : WIDE.hidden].T > 0).float().mean().item()
        for layer, (x, _) in zip(decoder.layers, seen.ffn_inputs, strict=True)
    ]
    assert shares == pytest.approx([0.3] * 12, rel=0.15)
    step = decode.Step(decoder, 64, 40).look()
    assert step.active == pytest.approx(0.3, rel=0.15)
    assert step.union > 2 * step.active, "some are hot, some cold"


def test_a_density_that_means_nothing_is_refused(tmp_path):
    shapes.describe(tmp_path, "mistral", WIDE, "float32", Recipe(0, 0.1))
    with pytest.raises(ModelError, match=r"density=0\.1: with silu none is skipped"):
        load(tmp_path, CPU, torch.float32)


def test_it_is_drawn_in_the_dtype_that_was_asked_for(tmp_path):
    model = drawn(tmp_path, "turbosparse-mistral", dtype=torch.bfloat16)
    assert {p.dtype for p in model.decoder.parameters()} == {torch.bfloat16}
    density = torch.stack([mask.float().mean() for mask in masks(model, 512)]).mean().item()
    assert density == pytest.approx(0.1, rel=0.25)


def test_signals_keep_their_size(tmp_path):
    """Logits of unit variance or so: not a model whose softmax is one token or all of them."""
    for family in shapes.FAMILIES:
        model = drawn(tmp_path / family, family, replace(WIDE, neurons=256))
        logits = observe(model.decoder, other_tokens(64)).logits
        assert 0.5 < logits.std().item() < 2, family


@pytest.mark.parametrize("name", shapes.NAMES)
def test_every_name_can_be_described(tmp_path, name):
    """The large ones at their own width, which is not drawn here."""
    shapes.describe_named(tmp_path, name)
    config = json.loads((tmp_path / "config.json").read_text())
    recipe = read(config)
    assert recipe is not None
    named = shapes.NAMES[name]
    assert (recipe.rank > 0) == named.family.startswith("turbosparse-")
    assert recipe.density == (None if "silu" in config["hidden_act"] else named.density)
    assert config["num_hidden_layers"] == named.shape.layers
    assert (tmp_path / "tokenizer.json").is_file()


def test_published_ranks():
    for name, rank in (("turbosparse-mistral-7b", 1260), ("turbosparse-mixtral-47b", 1036)):
        named = shapes.NAMES[name]
        assert shapes.recipe_of(named.family, named.shape, 0.1, 0).rank == rank


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "gpt-5"}, "'gpt-5' is not one of turbosparse-mistral-7b, turbosparse-mix"),
        ({"name": "mistral-7b", "density": 0.2}, "density=0.2: mistral-7b is a SiLU model"),
        ({"name": "turbosparse-mistral-7b", "density": 0.0}, "density=0.0 is not between"),
    ],
)
def test_what_cannot_be_described_is_refused(tmp_path, arguments, message):
    with pytest.raises(ModelError, match=message):
        shapes.describe_named(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (1, "synthetic: expected an object, got 1"),
        ({"rank": "large"}, "rank='large' must be integers"),
        ({"density": 3}, r"density=3\.0 is not between 0 and 1"),
        ({"rank": -2}, "rank=-2 is negative"),
        ({"rank": 2}, "rank=2: predictors need a density"),
    ],
)
def test_a_recipe_that_says_nothing_is_refused(recipe, message):
    with pytest.raises(ModelError, match=message):
        read({"synthetic": recipe})


def test_a_recipe_is_read_as_it_was_written():
    recipe = Recipe(seed=3, density=0.2, rank=7)
    assert read({"hidden_size": 1} | recipe.json()) == recipe
    assert read({"hidden_size": 1}) is None
