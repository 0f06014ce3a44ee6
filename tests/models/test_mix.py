"""Rows of a weighted mix: packed without gaps, the same for everyone, going on where they stood."""

import gzip
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from turbosparse.models.config import ModelError
from turbosparse.models.tools import mix
from turbosparse.models.tools.mix import Encoder, Rows, read_mix
from turbosparse.models.tools.shapes import byte_tokenizer

EOS = 319


@pytest.fixture
def encoder(tmp_path) -> Encoder:
    byte_tokenizer(320).save(str(tmp_path / "tokenizer.json"))
    return Encoder(tmp_path, EOS, 320)


def write_jsonl(path: Path, texts: list[str]) -> Path:
    content = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_mix(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "letters.jsonl.gz", [chr(97 + i) * (i + 1) for i in range(26)])
    (tmp_path / "digits.txt").write_text("".join(f"{i}\n" for i in range(3000)))
    path = tmp_path / "mix.yaml"
    path.write_text(
        "- {path: letters.jsonl.gz, weight: 3}\n- {path: digits.txt, weight: 1, name: numbers}\n"
    )
    return path


def take(rows: Rows, count: int) -> list[list[int]]:
    return list(itertools.islice(rows, count))


def test_documents_are_packed_whole_with_eos_between_and_a_pass_holds_each_once(tmp_path, encoder):
    texts = [chr(97 + i) * (i + 1) for i in range(26)]
    rows = Rows(read_mix(write_jsonl(tmp_path / "a.jsonl", texts)), encoder, 9, seed=0)
    num_tokens = sum(len(encoder.encode(text)) for text in texts)
    ids = [i for row in take(rows, -(-2 * num_tokens // 9)) for i in row]
    passes = ids[:num_tokens], ids[num_tokens : 2 * num_tokens]
    for one_pass in passes:
        assert one_pass[-1] == EOS
        documents = bytes_of(encoder, one_pass).split("\0")[:-1]
        assert sorted(documents) == texts
    assert passes[0] != passes[1], "another order each time"


def bytes_of(encoder: Encoder, ids: list[int]) -> str:
    return "".join("\0" if i == EOS else encoder._tokenizer.decode([i]) for i in ids)


def test_shares_follow_the_weights(tmp_path, encoder):
    rows = Rows(read_mix(write_mix(tmp_path)), encoder, 16, seed=0)
    digits = set(encoder.encode("0123456789\n"))
    counts = Counter(bool(set(row) & (digits - {EOS})) for row in take(rows, 400))
    assert 70 < counts[True] < 130  # 100 expected; the seed is fixed


def test_the_same_seed_gives_the_same_rows_and_another_gives_others(tmp_path, encoder):
    sources = read_mix(write_mix(tmp_path))
    one, same, other = (take(Rows(sources, encoder, 16, seed), 50) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("done", [0, 1, 7, 60])
def test_rows_go_on_from_any_position(tmp_path, encoder, done, monkeypatch):
    """60 rows are several passes over the letters; blocks of five documents, so also those."""
    monkeypatch.setattr(mix, "BLOCK", 5)
    sources = read_mix(write_mix(tmp_path))
    rows = Rows(sources, encoder, 16, seed=3)
    take(rows, done)
    position = json.loads(json.dumps(rows.position))
    assert take(Rows(sources, encoder, 16, 3, position), 40) == take(rows, 40)


def test_a_long_text_is_cut_at_line_ends(tmp_path):
    (tmp_path / "long.txt").write_text("a line of words\n" * 2000)
    pieces = list(mix.read_documents(tmp_path / "long.txt"))
    assert "".join(pieces) == "a line of words\n" * 2000
    assert all(piece.endswith("\n") for piece in pieces)
    assert {len(piece) for piece in pieces[:-1]} == {mix.PIECE}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "lists no source"),
        ("path: a.txt", "expected a list"),
        ("- a.txt", "expected an object, got 'a.txt'"),
        ("- {weight: 1}", "entry 1: path is missing"),
        ("- {path: a.txt, share: 1}", "entry 1: 'share' is none of path, weight, name"),
        ("- {path: a.txt, weight: 0}", "entry 1: weight=0 is not positive"),
        ("- {path: a.txt, weight: .inf}", "entry 1: weight=inf is not positive"),
        ("- {path: a.txt, weight: much}", "weight must be a number, got 'much'"),
        ("- {path: a.csv}", "a.csv is none of .txt, .jsonl"),
        ("- {path: a.txt}\n- {path: missing.txt}", "entry 2: .*missing.txt is missing"),
        ("- {path: a.txt}\n- {path: ./a.txt}", "name 'a' is given to 2 sources"),
        ("- [", "cannot be read as YAML"),
    ],
)
def test_a_mix_that_cannot_be_is_named(tmp_path, content, message):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "mix.yaml").write_text(content)
    with pytest.raises(ModelError, match=message):
        read_mix(tmp_path / "mix.yaml")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good\nb\xffd\n", r"a\.txt, line 2: not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n\n{', r"a\.jsonl, line 3: not JSON"),
        ("a.jsonl", b'{"body": "a"}', r"line 1: text must be a string, got None"),
        ("a.jsonl", b"[1]", r"line 1: expected an object"),
        ("a.txt", b"", r"a\.txt holds no text"),
        ("a.jsonl", b'{"text": " "}\n', r"a\.jsonl holds no text"),
        ("a.txt.gz", b"no gzip", r"a\.txt\.gz cannot be read"),
        ("a.txt.gz", gzip.compress(b"x" * 9999)[:-20], r"a\.txt\.gz cannot be read"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(tmp_path, encoder, name, content, message):
    (tmp_path / name).write_bytes(content)
    rows = Rows(read_mix(tmp_path / name), encoder, 16, seed=0)
    with pytest.raises(ModelError, match=message):
        take(rows, 1000)


def test_an_id_beyond_the_models_vocabulary_is_named(tmp_path):
    byte_tokenizer(320).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"writes id .* but vocab_size is 50"):
        Encoder(tmp_path, 1, 50).encode("zebra")
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        Encoder(tmp_path / "elsewhere", 1, 50)
