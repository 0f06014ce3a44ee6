"""Training end to end on a few lines of text: what is written is what was trained."""

import dataclasses
import gzip
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from whole import logits_of

from turbosparse.models.batch import FfnMode
from turbosparse.models.config import Activation, ModelError
from turbosparse.models.load import load
from turbosparse.models.tools import corpus, greedy, long_text, train
from turbosparse.models.tools.fit import (
    Data,
    Optimizer,
    Recipe,
    learning_rate,
    masked_share,
    optimizers,
)
from turbosparse.models.tools.prepare import Texts, key_of, prepare
from turbosparse.models.tools.trainable import Sizes, TurboSparse
from turbosparse.server.cli import main

SIZES = Sizes(
    vocab=320, hidden=32, layers=2, heads=4, kv_heads=2, neurons=48, rank=8, context=2048
)  # fmt: skip
RECIPE = Recipe(
    max_steps=20,
    batch=4,
    length=128,
    long_length=256,
    long_every=4,
    warmup=2,
    # So that after 20 steps the FFN does something, and the mask keeps some and drops some.
    learning_rate=0.01,
    pressure=0.0,
    mean_pressure=0.0,
    conversations=40,
    short_keys=4,
    long_keys=4,
    questions_per_task=1,
    answer_tokens=8,
    chat_share=0.25,
    text_share=0.25,
)
TURNS = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "A table for two?"},
]
FILES = {
    "sgd_dialogues.train.jsonl.gz": [{"messages": TURNS}] * 5,
    "sgd_dialogues.dev.jsonl.gz": [{"messages": TURNS}] * 40,
    "gsm8k.train.jsonl.gz": [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}] * 3,
    "tldr_pages.jsonl.gz": [{"page": "common/tar", "text": "# tar\n\nArchives."}] * 3,
    "rust_book.jsonl.gz": [{"page": "x", "text": "Rust is a language.\n" * 30}],
    "wikitext2.valid.txt.gz": "The river is long .\n" * 40,
    "wikitext2.test.txt.gz": "The city is old .\n" * 40,
    "shakespeare.txt.gz": "To be, or not to be.\n" * 40,
}


def write(folder: Path, name: str, content: str | bytes) -> None:
    raw = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(gzip.compress(raw))


def write_data(folder: Path) -> Path:
    for name, content in FILES.items():
        text = content if isinstance(content, str) else "\n".join(map(json.dumps, content)) + "\n"
        write(folder, name, text)
    return folder


def run(data: Path, out: Path, sizes: Sizes = SIZES, cache: Path | None = None) -> None:
    with torch.enable_grad():
        train.train(data, out, sizes, RECIPE, compiled=False, processes=1, cache=cache)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache) -> Path:
    out = tmp_path_factory.mktemp("out") / "tiny"
    run(write_data(tmp_path_factory.mktemp("data")), out, cache=cache)
    return out


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return write_data(folder)


def clear_ids(model: TurboSparse) -> list[int]:
    """Tokens whose predictor scores are all clear of zero: at a tie, rounding would decide."""
    scores: list[torch.Tensor] = []
    for layer in model.layers:
        layer.mlp.predictor.register_forward_hook(lambda _, __, score: scores.append(score))
    for seed in range(100):
        scores.clear()
        ids = torch.randint(0, SIZES.vocab, (1, 40), generator=torch.Generator().manual_seed(seed))
        model(ids)
        sizes = [score[score != 0].abs() for score in scores]  # 0: its hidden units are all off
        if all(size.min() > 1e-5 * size.max() for size in sizes):
            return ids[0].tolist()
    raise AssertionError("no sequence is clear of ties")


def test_our_loader_computes_what_the_trainer_computed(trained):
    model = TurboSparse(SIZES).eval()
    weights = load_file(trained / "model.safetensors")
    model.load_state_dict({n.removeprefix("model."): t.float() for n, t in weights.items()})
    ids = clear_ids(model)
    (want,), sparsity = model(torch.tensor([ids]))
    assert ((sparsity[:, 2] > 0) & (sparsity[:, 2] < 1)).all(), "each layer's mask does both"
    loaded = load(trained, torch.device("cpu"), torch.float32)
    assert loaded.config.predictor
    for mode in FfnMode:
        got = logits_of(loaded.decoder, ids, mode)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    unmasked = model(torch.tensor([ids]), masked=False)[0][0]
    assert (unmasked - want).abs().max() > 1e-3, "the mask made no difference"


def test_the_layout_is_the_published_one(trained):
    config = json.loads((trained / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bamboo", ["BambooForCausalLM"])
    weights = load_file(trained / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}
    assert weights["model.layers.1.mlp.predictor.fc2.weight"].shape == (SIZES.neurons, SIZES.rank)
    tokenizer = Tokenizer.from_file(str(trained / "tokenizer.json"))
    assert [tokenizer.id_to_token(i) for i in range(5)] == list(corpus.SPECIAL)
    assert tokenizer.get_vocab_size() <= SIZES.vocab
    record = json.loads((trained / "training.json").read_text())
    assert record["training"]["steps"] == RECIPE.max_steps
    # An untrained model's loss is the logarithm of its vocabulary.
    assert record["training"]["final_loss"] < math.log(SIZES.vocab) - 0.2
    assert f"{record['scores']['mean_kept']:.1%}" in (trained / "README.md").read_text()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_before_anything_is_trained(data, tmp_path, name):
    (data / name).unlink()
    with pytest.raises(ModelError, match=rf"{name} is missing: --data"):
        run(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("shakespeare.txt.gz", b"\xff\xfeT\0o\0", r"shakespeare\.txt\.gz is not UTF-8"),
        ("gsm8k.train.jsonl.gz", "{}\n", r"gsm8k.*, line 1: question must be a string, got None"),
        ("rust_book.jsonl.gz", '{"text": "a"}\n{', r"rust_book\.jsonl\.gz, line 2: not JSON"),
        ("tldr_pages.jsonl.gz", "[]", r"tldr_pages.*, line 1: expected an object, got \[\]"),
        ("sgd_dialogues.dev.jsonl.gz", '{"messages": 5}', r"dev.*, line 1: expected a list, got 5"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(data, tmp_path, name, content, message):
    write(data, name, content)
    with pytest.raises(ModelError, match=message):
        run(data, tmp_path / "out")


def test_a_file_that_is_not_gzip_or_cut_short_is_named(data, tmp_path):
    whole = (data / "shakespeare.txt.gz").read_bytes()
    for content in (b"To be", whole[: len(whole) // 2]):
        (data / "shakespeare.txt.gz").write_bytes(content)
        with pytest.raises(ModelError, match=r"shakespeare\.txt\.gz cannot be read"):
            run(data, tmp_path / "out")


def test_a_failure_while_writing_leaves_the_old_checkpoint(trained, tmp_path):
    out = tmp_path / "tiny"
    out.mkdir()
    (out / "config.json").write_text("old")
    tokenizer = Tokenizer.from_file(str(trained / "tokenizer.json"))
    model = TurboSparse(SIZES)
    with pytest.raises(TypeError, match="JSON serializable"):
        train.save(out, model, tokenizer, {"config.json": model.config(), "x.json": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"], "no half-written folder stays"
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("config.json", "old")]


def test_a_new_checkpoint_replaces_only_its_own_files(trained, tmp_path):
    out = tmp_path / "tiny"
    out.mkdir()
    for name in ("__init__.py", "config.json"):
        (out / name).write_text("old")
    tokenizer = Tokenizer.from_file(str(trained / "tokenizer.json"))
    model = TurboSparse(SIZES)
    train.save(out, model, tokenizer, {"config.json": model.config()})
    assert (out / "__init__.py").read_text() == "old"
    assert load(out, torch.device("cpu"), torch.float32).num_parameters > 0
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_out_must_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"--out: .*file is not a folder"):
        train.train(tmp_path, tmp_path / "file", SIZES, RECIPE, compiled=False, processes=1)


def test_rows_begin_with_a_document_and_chats_read_as_the_template_writes_them(trained):
    tokenizer = Tokenizer.from_file(str(trained / "tokenizer.json"))
    talk = corpus.chat([("user", "a"), ("assistant", "b")])
    (ids, weights), *_ = corpus.encode(tokenizer, [talk])
    written = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n</s>"
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == written
    spoken = [tokenizer.id_to_token(i) for i, w in zip(ids, weights, strict=True) if w == 1]
    assert spoken == ["b", "<|im_end|>"], "the assistant's words count in full, and their end"
    documents = corpus.encode(tokenizer, [talk, corpus.Document("x" * 50)] * 20)
    rows, counts = corpus.pack(documents, 30, seed=0)
    assert rows.shape == counts.shape
    assert rows.shape[1] == 31
    assert set(rows[:, 0].tolist()) <= {corpus.BOS, corpus.IM_START}
    assert counts.any(axis=1).all(), "no row is only filling"


def test_batches_are_drawn_in_their_shares():
    sources = [
        ((torch.full((9, 5), i, dtype=torch.int16).numpy(), torch.ones(9, 5).half().numpy()), share)
        for i, share in enumerate((0.25, 0.125, 0.625))
    ]
    ids, weights = Data(sources, torch.device("cpu")).batch(16, torch.Generator().manual_seed(0))
    assert ids[:, 0].tolist() == [0] * 4 + [1] * 2 + [2] * 10
    assert weights.dtype == torch.float32


def test_the_learning_rate_rises_then_falls_in_a_straight_line():
    recipe = dataclasses.replace(RECIPE, warmup=10, learning_rate=1.0, final_share=0.1)
    rates = [learning_rate(recipe, step / 100, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:] == pytest.approx([1 - 0.009 * step for step in range(10, 101)])
    assert rates[100] == pytest.approx(0.1)


def test_the_mask_comes_in_more_and_more_rows():
    recipe = dataclasses.replace(RECIPE, dense_share=0.5, ramp_share=0.2, masked_share=0.8)
    shares = [masked_share(recipe, progress) for progress in (0, 0.5, 0.6, 0.7, 1)]
    assert shares == pytest.approx([0, 0, 0.4, 0.8, 0.8])


@pytest.mark.parametrize("optimizer", Optimizer)
def test_each_optimizer_takes_every_weight_once(optimizer):
    model = TurboSparse(SIZES)
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer)
    taken = [
        parameter
        for made in optimizers(model, recipe)
        for group in made.param_groups
        for parameter in group["params"]
    ]
    assert sorted(map(id, taken)) == sorted(map(id, model.parameters()))


def test_each_row_has_its_own_mask():
    model = TurboSparse(SIZES).eval()
    ids = torch.randint(0, SIZES.vocab, (2, 30), generator=torch.Generator().manual_seed(0))
    both, _ = model(ids, torch.tensor([1.0, 0.0]).view(2, 1, 1))
    torch.testing.assert_close(both[:1], model(ids[:1], True)[0])
    torch.testing.assert_close(both[1:], model(ids[1:], False)[0])
    assert (both[1] - model(ids[1:], True)[0][0]).abs().max() > 0


@pytest.mark.parametrize("activation", [Activation.SILU, Activation.RELU])
def test_a_twin_trains_on_the_kept_rows_and_is_served(data, tmp_path, trained, cache, activation):
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    assert made
    sizes = dataclasses.replace(SIZES, activation=activation, rank=0)
    twin = tmp_path / "twin"
    run(data, twin, sizes, cache=cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == made
    loaded = load(twin, torch.device("cpu"), torch.float32)
    assert loaded.config.activation is activation
    assert not loaded.config.predictor
    ids = list(range(40))
    weights = load_file(twin / "model.safetensors")
    model = TurboSparse(sizes).eval()
    model.load_state_dict({n.removeprefix("model."): t.float() for n, t in weights.items()})
    want = model(torch.tensor([ids]))[0][0]
    torch.testing.assert_close(
        logits_of(loaded.decoder, ids, FfnMode.DENSE), want, atol=1e-4, rtol=0
    )
    shutil.copytree(trained, tmp_path / "tiny")
    train.write_card(tmp_path / "tiny", [twin])
    card = (tmp_path / "tiny" / "README.md").read_text()
    loss = json.loads((twin / "training.json").read_text())["scores"]["text_loss"]
    assert f" {loss:.3f} |\n" in card.partition("## Twins")[2]


def test_a_card_of_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"training\.json cannot be read"):
        train.write_card(tmp_path, [])


def test_rows_that_a_killed_run_left_half_written_are_not_taken(data, tmp_path):
    read, recipe = Texts.read(data), dataclasses.replace(RECIPE, conversations=8)
    kept = tmp_path / "cache"
    (kept / f"{key_of(read, 320, recipe)}.123").mkdir(parents=True)
    rows = prepare(read, 320, recipe, 1, kept).ordinary
    again = prepare(read, 320, recipe, 1, kept).ordinary
    for ((ids, _), share), ((same, _), same_share) in zip(rows, again, strict=True):
        assert (ids == same).all()
        assert share == same_share


def test_answers_with_a_cache_are_those_without():
    """Rows of different lengths in one batch, each compared with the whole prefix run anew."""
    model = TurboSparse(SIZES).eval()
    for parameter in model.parameters():
        parameter.mul_(5 if parameter.dim() == 2 else 1)  # as drawn, it repeats itself
    tokenizer = corpus.train_tokenizer([corpus.Document("some words to say")], SIZES.vocab)
    prompts = ["a", "a longer prompt than that", "three"]
    said = greedy.answers(model, tokenizer, prompts, max_tokens=12)
    for prompt, got in zip(prompts, said, strict=True):
        ids = tokenizer.encode(prompt).ids
        start = len(ids)
        while len(ids) < start + 12 and ids[-1] not in greedy.ENDS:
            ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
        assert got == tokenizer.decode(ids[start:])
    assert len(set(said)) > 1


def test_text_like_its_long_rows_for_who_takes_a_file(data, tmp_path, trained, capsys):
    arguments = ["train", "--data", str(data), "--out", str(trained)]
    assert main([*arguments, "--long-text", str(tmp_path / "text")]) == 0
    tokenizer = Tokenizer.from_file(str(trained / "tokenizer.json"))
    sizes = {}
    for name, unseen in (("text.txt", "city is old"), ("held-out.txt", "river is long")):
        text = (tmp_path / "text" / name).read_text()
        assert "pass key" in text
        assert unseen not in text
        sizes[name] = len(tokenizer.encode(text).ids)
    assert sizes["text.txt"] >= long_text.ROWS * Recipe().long_length
    assert sizes["held-out.txt"] >= long_text.HELD_OUT_ROWS * Recipe().long_length
    talk = corpus.chat([("user", "a"), ("assistant", "b")])
    for document in (talk, corpus.Document("x y")):
        [(ids, _)] = corpus.encode(tokenizer, [document])
        assert tokenizer.encode(long_text.written(document)).ids == ids.tolist()
    assert main(["train", "--out", str(trained), "--long-text", str(tmp_path)]) == 1
    assert "--data is needed" in capsys.readouterr().err
