"""Training end to end on a few lines of text: what is written is what was trained."""

import dataclasses
import gzip
import json
import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from whole import logits_of

from turbosparse.models.batch import FfnMode
from turbosparse.models.config import ModelError
from turbosparse.models.load import load
from turbosparse.models.tools import corpus, train
from turbosparse.models.tools.fit import Data, Recipe, learning_rate
from turbosparse.models.tools.tasks import dialogues
from turbosparse.models.tools.trainable import Sizes, TurboSparse

SIZES = Sizes(
    vocab=320, hidden=32, layers=2, heads=4, kv_heads=2, neurons=48, rank=8, context=768
)  # fmt: skip
RECIPE = Recipe(
    max_steps=20,
    batch=4,
    length=320,
    long_length=640,
    long_every=4,
    warmup=2,
    # So that after 20 steps the FFN does something, and the mask keeps some and drops some.
    learning_rate=0.01,
    pressure=0.0,
    conversations=40,
    short_keys=4,
    long_keys=4,
    questions_per_task=1,
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


def run(data: Path, out: Path) -> None:
    with torch.enable_grad():
        train.train(data, out, SIZES, RECIPE, compiled=False, processes=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "tiny"
    run(write_data(tmp_path_factory.mktemp("data")), out)
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
    talk = corpus.chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
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


def test_the_learning_rate_rises_then_falls_to_its_final_share():
    recipe = dataclasses.replace(RECIPE, warmup=10, learning_rate=1.0, final_share=0.1)
    rates = [learning_rate(recipe, step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.1)


def test_the_exam_asks_what_training_never_showed():
    """Both sides are seeded, so the outcome is fixed; the sizes make an overlap all but sure."""
    shown = {
        message["content"]
        for conversation in dialogues.generate(0, 3000)
        for message in conversation
        if message["role"] == "user"
    }
    asked = [(task, exchange) for task, exchange in dialogues.exam(0, 60)]
    unseen = {e.question for task, e in asked if task in dialogues.UNSEEN}
    taught = {e.question for task, e in asked if task in ("pairs", "project", "small_talk")}
    assert not unseen & shown
    assert taught & shown, "the comparison itself works"


@pytest.mark.parametrize("task", [task for task, _ in dialogues.TASKS])
def test_every_generated_answer_passes_its_own_exam(task):
    """The grader looks for `expected` in an answer: the taught one must hold it."""
    rng = random.Random(0)
    for _ in range(200):
        exchange = task(rng)
        assert exchange.expected.lower() in exchange.answer.lower(), exchange
        assert "{" not in exchange.question + exchange.answer


def test_a_conversation_alternates_and_remembers_its_name():
    named = 0
    for messages in dialogues.generate(0, 300):
        turns = [m["role"] for m in messages if m["role"] != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        if messages[-1]["content"].startswith("Your name is "):
            name = messages[-1]["content"].removeprefix("Your name is ").rstrip(".")
            assert name in next(m["content"] for m in messages if m["role"] == "user")
            named += 1
    assert named > 3
