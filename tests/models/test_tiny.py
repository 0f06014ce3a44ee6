"""The bundled model: what the README and its card promise of it."""

import json
import string
from pathlib import Path

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.torch import load_file
from tokenizers import Tokenizer
from whole import logits_of

import turbosparse
from turbosparse.models.batch import FfnMode
from turbosparse.models.config import Activation
from turbosparse.models.identity import Identity
from turbosparse.models.load import load
from turbosparse.models.sequence import observe
from turbosparse.models.sparsity import gates
from turbosparse.models.sparsity.predictor import OraclePredictor, recall
from turbosparse.models.tools.trainable import Sizes, TurboSparse

TINY = Path(turbosparse.__file__).parent / "models" / "tiny"
RECORD = json.loads((TINY / "training.json").read_text())
SIZES = Sizes(**RECORD["sizes"] | {"activation": Activation.DRELU})
# Written for this test: no model was trained on it.
CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Which bus should I take from the harbour to the old museum?"},
    {"role": "assistant", "content": "Take the number nine; it leaves at a quarter past four."},
    {"role": "user", "content": "And how much will two tickets cost us?"},
]
PROSE = (
    "The engineer opened the window and listened. Somewhere below, a generator had begun to hum, "
    "and the lights of the harbour came on one after another, as they had every evening since "
    "the bridge was finished. She wrote down the hour and went back to her drawings."
)


@pytest.fixture(scope="module")
def model():
    return load(TINY, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


def render(messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
    source = json.loads((TINY / "tokenizer_config.json").read_text())["chat_template"]
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        source
    )
    return template.render(messages=messages, add_generation_prompt=add_generation_prompt)


def answer(model, tokenizer, question: str, limit: int = 40) -> str:
    """Greedy, by whole forward passes: the engine has tests of its own."""
    ids = tokenizer.encode(render([{"role": "user", "content": question}])).ids
    start = len(ids)
    while len(ids) < start + limit:
        token = int(logits_of(model.decoder, ids, FfnMode.TOKEN)[-1].argmax())
        if token in model.eos_token_ids:
            return tokenizer.decode(ids[start:])
        ids.append(token)
    raise AssertionError(f"no end after {limit} tokens: {tokenizer.decode(ids[start:])}")


def test_it_is_small_enough_to_be_bundled():
    assert sum(f.stat().st_size for f in TINY.rglob("*") if f.is_file()) <= 32 * 2**20


def test_it_is_a_turbosparse_mistral_in_the_published_layout(model):
    config = json.loads((TINY / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bamboo", ["BambooForCausalLM"])
    assert model.config.predictor
    assert model.exact
    assert model.config.max_positions >= 1024
    assert all(len(layer.ffn.predictor.fc1.weight) == SIZES.rank for layer in model.decoder.layers)


def test_both_of_its_end_tokens_are_found(model, tokenizer):
    assert model.eos_token_ids == tuple(map(tokenizer.token_to_id, ("</s>", "<|im_end|>")))


def test_its_tokenizer_is_a_byte_level_bpe(tokenizer):
    assert json.loads(tokenizer.to_str())["model"]["type"] == "BPE"
    for text in (PROSE, "Grüße, 世界! 🙂\t\r\n", "x = 12345"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("123").tokens == ["1", "2", "3"], "sums are done digit by digit"
    assert tokenizer.encode("<|im_start|>").ids == [3]


def test_its_template_is_chatml():
    assert render(CHAT[:2], add_generation_prompt=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhich bus should I take from the harbour to the old museum?<|im_end|>\n"
    )
    assert render(CHAT).endswith("two tickets cost us?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("text", [render(CHAT), f"<s>{PROSE}"], ids=["chat", "prose"])
def test_its_predictors_keep_at_most_15_percent(model, tokenizer, text):
    active = observe(model.decoder, torch.tensor(tokenizer.encode(text).ids)).active
    assert 0.01 < active.mean() <= 0.15


def test_its_predictors_find_active_neurons(model, tokenizer):
    """In every layer several times better than by chance, whose recall is the kept share."""
    seen = observe(model.decoder, torch.tensor(tokenizer.encode(render(CHAT)).ids))
    for layer, (x, residual) in zip(model.decoder.layers, seen.ffn_inputs, strict=True):
        ffn = layer.ffn
        truth = OraclePredictor(ffn.gate_up, ffn.activation, ffn.threshold).select(residual, x)
        mask = ffn.predictor.select(residual, x)
        assert recall(mask, truth) > 2 * mask.float().mean()


@pytest.mark.parametrize("mode", FfnMode)
def test_it_computes_what_its_trainer_computed(model, tokenizer, mode):
    """The trainer's forward is plain torch. Where a predictor's score is next to zero rounding
    decides, so only the tokens before the first such score are compared. The weights are fixed,
    hence so is that place: after the last token, for scores within 5e-6 (the two differ by 1e-6).
    """
    trainer = TurboSparse(SIZES).eval()
    weights = load_file(TINY / "model.safetensors")
    trainer.load_state_dict({n.removeprefix("model."): t.float() for n, t in weights.items()})
    scores: list[torch.Tensor] = []
    for layer in trainer.layers:
        layer.mlp.predictor.register_forward_hook(lambda _, __, score: scores.append(score[0]))
    ids = tokenizer.encode(render(CHAT)).ids
    want = trainer(torch.tensor([ids]))[0][0]
    near = (torch.stack(scores).abs() < 5e-6).any(2).any(0)  # [layers, T, N] -> [T]
    clear = int(near.int().argmax()) if near.any() else len(ids)
    assert clear > 40
    got = logits_of(model.decoder, ids, mode)
    torch.testing.assert_close(got[:clear], want[:clear], atol=1e-3, rtol=0)


def test_the_gates_that_it_carries_are_its_own_and_find_more_than_the_bound(model):
    folder = gates.own(TINY)
    assert folder is not None
    info = gates.attach(model.decoder, folder, 16, Identity.of(TINY, model.config))
    try:
        assert info.measured
        card = (TINY / "README.md").read_text()
        quality = json.loads((folder / "config.json").read_text())["quality"]
        for budget in ("416", "832"):
            gate, bound = quality["gate"][budget], quality["bound"][budget]
            assert f"| {budget} | gate | {gate['recall']:.1%} |" in card
            layers = zip(gate["recall_by_layer"], bound["recall_by_layer"], strict=True)
            assert all(ours > theirs for ours, theirs in layers)
            assert gate["perplexity"] <= 1.01 * quality["perplexity"]
    finally:
        for layer in model.decoder.layers:
            gates.attention_of(layer).gate = None


def test_it_greets_in_english(model, tokenizer):
    said = answer(model, tokenizer, "Hello!")
    assert "help" in said
    words = said.split()
    assert len(words) >= 3
    assert all(word.strip(string.punctuation).isalpha() and word.isascii() for word in words), said


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("Who are you?", "TurboSparse"),
        ("What is the capital of France?", "Paris"),
        ("What is 12 plus 7?", "19"),
        ("How do I start the server?", "make serve"),
    ],
)
def test_it_answers_what_its_card_shows(model, tokenizer, question, word):
    assert word in answer(model, tokenizer, question)
    card = (TINY / "README.md").read_text()
    assert word in card.partition(f"> {question}\n\n")[2].partition("\n")[0]


def test_its_card_tells_the_numbers_of_its_training(model):
    card = (TINY / "README.md").read_text()
    record, scores = RECORD, RECORD["scores"]
    assert record["num_parameters"] == model.num_parameters
    assert f"{model.num_parameters / 1e6:.1f} M parameters" in card
    assert f"kept by the predictors, mean | {scores['mean_kept']:.1%}" in card
    assert f"| {scores['text_loss']:.3f} |" in card
    assert f"--minutes {record['recipe']['minutes']:g} --seed {record['recipe']['seed']}" in card
    assert "turbosparse train --data DIR --out models/tiny" in card
    for source in ("CC BY-SA 4.0", "CC BY 4.0", "MIT", "public domain", "Apache-2.0"):
        assert source in card
