"""What `evaluate` measures with: two runs over the same text, and the neurons that they skip."""

import gzip
import json
import math

import published
import pytest
import torch
from test_predictors import write_predictors
from tokenizers import Tokenizer, decoders, models
from whole import logits_of

from turbosparse.models.batch import FfnMode
from turbosparse.models.config import ModelError
from turbosparse.models.load import load
from turbosparse.models.neurons import chosen
from turbosparse.models.sequence import observe
from turbosparse.models.sparsity.predictor import OraclePredictor
from turbosparse.models.tools.fidelity import Run, compare, continue_both, continue_greedily
from turbosparse.models.tools.skipping import Unions
from turbosparse.models.tools.text import bos_ids, read_tokenizer, read_windows

LAYERS, NEURONS, VOCAB = 3, 100, 97
KINDS = ("turbosparse-mistral", "turbosparse-mixtral", "bamboo", "minicpm-s")


def read(directory, **options):
    """On the reference's path: its kernels have tests of their own."""
    cpu = torch.device("cpu")
    return load(directory, cpu, torch.float32, backends=("reference",), **options).decoder


def windows(count: int = 6, length: int = 12) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return list(torch.randint(0, VOCAB, (count, length), generator=generator))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=KINDS)
def decoder(request, folder):
    return read(published.make(folder / request.param, request.param))


@pytest.fixture(scope="module")
def bamboo(folder):
    return published.make(folder / "plain", "bamboo")


def test_the_loss_is_the_mean_over_all_predicted_tokens(decoder):
    (found,) = compare([Run("whole", decoder)], windows())
    losses = [
        torch.nn.functional.cross_entropy(
            logits_of(decoder, ids.tolist(), FfnMode.DENSE)[:-1], ids[1:], reduction="sum"
        )
        for ids in windows()
    ]
    assert found.num_tokens == 6 * 11
    assert found.loss == pytest.approx(sum(losses).item() / 66, abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.agreement is None


def test_the_sparse_steps_and_the_dense_one_are_one_function(decoder):
    sparse = Run("sparse", decoder, FfnMode.UNION, step=5)
    _, dense = compare([sparse, Run("dense", decoder)], windows())
    assert dense.agreement.same_best == 1
    assert abs(dense.agreement.nats) < 1e-6
    assert dense.agreement.logits < 1e-3
    both = continue_both(sparse, Run("dense", decoder), torch.stack(windows()), 8)
    assert (both.num_prompts, both.num_tokens, both.num_same, both.common) == (6, 8, 6, 1)


def test_shares_per_layer_are_counts_over_all_windows(decoder):
    (found,) = compare([Run("run", decoder)], windows())
    experts = 2 if decoder.config.num_experts else 1
    for i, layer in enumerate(found.skipping.layers):
        seen = [observe(decoder, ids) for ids in windows()]
        pairs = [chosen(decoder.layers[i].get_submodule("ffn"), *one.ffn_inputs[i]) for one in seen]
        mask, truth = (torch.cat(masks) for masks in zip(*pairs, strict=True))
        total = len(mask) * NEURONS * experts
        assert layer.kept == pytest.approx(int(mask.sum()) / total)
        assert layer.kept == pytest.approx(sum(one.active[i].item() for one in seen) / 6, abs=1e-5)
        assert layer.active == pytest.approx(int(truth.sum()) / total)
        assert layer.recall == pytest.approx(int((mask & truth).sum()) / int(truth.sum()))
        assert layer.precision == pytest.approx(int((mask & truth).sum()) / int(mask.sum()))
    assert 0 < found.skipping.active < 1
    has_mask = decoder.config.predictor
    assert (found.skipping.recall < 1) == (found.skipping.precision < 1) == has_mask


@pytest.mark.parametrize("name", KINDS[:2])
def test_mask_off_keeps_every_neuron_and_is_another_function(tmp_path, name):
    decoder = read(published.make(tmp_path, name))
    runs = [Run("exact", decoder), Run("mask off", decoder, threshold=-math.inf)]
    exact, off = compare(runs, windows())
    assert off.skipping.kept == pytest.approx(1)
    assert off.skipping.recall == 1
    assert off.agreement.nats > 0.01
    assert exact.skipping.kept < 0.9
    assert json.loads(json.dumps(off.as_json(), allow_nan=False))["threshold"] == "-inf"


def with_oracles(decoder):
    for layer in decoder.layers:
        ffn = layer.get_submodule("ffn")
        ffn.predictor = OraclePredictor(ffn.gate_up, ffn.activation, ffn.threshold)
    return decoder


def test_the_oracle_is_perfect_and_a_broken_predictor_is_not(bamboo, tmp_path):
    exact = read(bamboo)
    broken = write_predictors(tmp_path / "broken", published.config_of("bamboo"))
    runs = [
        Run("exact", exact),
        Run("oracle", with_oracles(read(bamboo))),
        Run("broken", read(bamboo, predictors=broken)),
    ]
    _, oracle, bad = compare(runs, windows())
    assert (oracle.skipping.recall, oracle.skipping.precision) == (1, 1)
    assert oracle.skipping.kept == oracle.skipping.active
    assert abs(oracle.agreement.nats) < 1e-6
    assert oracle.agreement.same_best == 1
    assert max(bad.skipping.recall, bad.skipping.precision) < 0.8
    assert bad.agreement.nats > 0.01
    assert bad.agreement.same_best < 0.9
    prompts = torch.stack(windows())
    assert continue_both(runs[0], runs[1], prompts, 8).common == 1
    parted = continue_both(runs[0], runs[2], prompts, 8)
    assert parted.common < 1
    assert parted.num_same < 6


def test_continuations_are_greedy(decoder):
    prompts = torch.stack(windows(2))
    texts = [prompt.tolist() for prompt in prompts]
    for text in texts:
        for _ in range(5):
            text.append(int(logits_of(decoder, text, FfnMode.TOKEN)[-1].argmax()))
    said = continue_greedily(Run("run", decoder, FfnMode.UNION), prompts, 5)
    assert said.tolist() == [text[12:] for text in texts]


def test_unions_are_of_tokens_of_different_windows():
    unions = Unions((1, 2, 4), seed=0)
    for window in range(5):  # the fifth begins a new union of two and of four: not whole
        mask = torch.zeros(4, 8, dtype=torch.bool)
        mask[:, window] = True  # each window keeps a neuron of its own
        unions.add([mask, torch.zeros_like(mask)])
    assert unions.result() == {1: [1 / 8, 0], 2: [2 / 8, 0], 4: [4 / 8, 0]}


def test_a_union_grows_and_the_hottest_neurons_take_the_most(decoder):
    (found,) = compare([Run("run", decoder)], windows(8), batch_sizes=(1, 2, 8, 64))
    union, hottest = found.skipping.union, found.skipping.hottest
    assert list(union) == [1, 2, 8]  # there are no 64 windows
    assert union[1] < union[2] < union[8] <= 1
    shares = list(hottest.values())
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert all(covered >= share - 1e-9 for share, covered in hottest.items())


def test_nothing_is_counted_where_nothing_can_be_skipped(tmp_path):
    directory = published.make(tmp_path, "sakana", model_type="llama", hidden_act="silu")
    (found,) = compare([Run("silu", read(directory))], windows())
    assert found.skipping is None
    assert found.loss > 0


@pytest.fixture
def letters(tmp_path):
    """A checkpoint's tokenizer of single letters, and `<s>`."""
    vocabulary = {"<s>": 0, "?": 1, "\n": 2} | {c: 3 + i for i, c in enumerate("abcdefgh")}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="?"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "<s>"}}')
    return tmp_path


def all_of(folder, path, length=4, num_tokens=None, flag="--text"):
    tokenizer = read_tokenizer(folder)
    start = bos_ids(folder, tokenizer)
    return [w.tolist() for w in read_windows(path, flag, tokenizer, length, start, num_tokens)]


def test_text_becomes_windows_that_begin_with_bos(letters, monkeypatch):
    path = letters / "a.txt"
    path.write_text("abc\ndef\nabcd")
    expected = [[0, 3, 4, 5], [0, 2, 6, 7], [0, 8, 2, 3], [0, 4, 5, 6]]
    assert all_of(letters, path) == expected
    for size in (1, 3, 5):  # however the file is cut, nothing is lost
        monkeypatch.setattr("turbosparse.models.tools.text.PIECE", size)
        assert all_of(letters, path) == expected
    (letters / "b.txt.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert all_of(letters, letters / "b.txt.gz") == expected
    assert all_of(letters, path, num_tokens=4) == expected[:2]
    assert all_of(letters, path, length=8) == [[0, 3, 4, 5, 2, 6, 7, 8]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 tokens, fewer than one window of 3 needs"),
        (b"ab", "has 2 tokens, fewer than one window of 3 needs"),
        (b"abc\nabc\nab\xff", "line 3, is not UTF-8"),
        (b"abc\nabc\nab\xe2\x82", "line 3, is not UTF-8"),
    ],
)
def test_text_that_cannot_be_used_is_named(letters, content, message, monkeypatch):
    monkeypatch.setattr("turbosparse.models.tools.text.PIECE", 5)
    path = letters / "a.txt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"--data: .*a\.txt.*{message}"):
        all_of(letters, path, flag="--data")


def test_a_file_that_cannot_be_read_is_named(letters):
    (letters / "cut.gz").write_bytes(gzip.compress(b"abc" * 99)[:-9])
    (letters / "no.gz").write_bytes(b"abc")
    for name, message in (
        ("cut.gz", "cannot be read"),
        ("no.gz", "cannot be read"),
        ("none.txt", "there is no file"),
        ("", "cannot be read"),
    ):
        with pytest.raises(ModelError, match=f"--text: .*{message}"):
            all_of(letters, letters / name)
    (letters / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        read_tokenizer(letters)
    (letters / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        read_tokenizer(letters)
