"""Text is set free as early as it may be, and never earlier."""

import pytest
from echo_engine import ids, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from turbosparse.server.detokenizer import Detokenizer
from turbosparse.server.tokenizer import Tokenizer

TOKENIZER = Tokenizer(make_tokenizer())
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=40)


def feed(text: str, stop: list[str], *, include_stop: bool = False) -> tuple[list[str], bool]:
    """What each byte of the text set free, and whether a stop string ended it."""
    detokenizer = Detokenizer(TOKENIZER, stop, include_stop=include_stop)
    pieces = []
    for token_id in ids(text):
        pieces.append(detokenizer.add(token_id))
        if detokenizer.stopped:
            return pieces, True
    pieces.append(detokenizer.finish())
    return pieces, detokenizer.stopped


def first_stop(text: str, stop: list[str]) -> tuple[int, int] | None:
    """(start, end) of the stop string that is complete first; of those, the longest."""
    ends = range(1, len(text) + 1)
    for end in ends:
        found = [end - len(s) for s in stop if text[:end].endswith(s)]
        if found:
            return min(found), end
    return None


@given(TEXTS)
def test_without_stop_strings_all_of_the_text_comes(text):
    pieces, stopped = feed(text, [])
    assert "".join(pieces) == text
    assert not stopped


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1))
def test_the_text_ends_where_the_first_stop_string_begins(text, stop):
    """Three letters, so that begun, overlapping and nested stop strings are the rule."""
    pieces, stopped = feed(text, stop)
    found = first_stop(text, stop)
    assert stopped == (found is not None)
    assert "".join(pieces) == (text if found is None else text[: found[0]])


@given(st.text("aé日", max_size=20), st.text("aé日", min_size=1, max_size=3))
def test_nothing_shown_is_ever_taken_back_and_little_is_held(text, stop):
    """At every byte: what is out is right, and only what may still be a stop string is not."""
    detokenizer = Detokenizer(TOKENIZER, [stop])
    shown = ""
    for i, token_id in enumerate(ids(text)):
        shown += detokenizer.add(token_id)
        if detokenizer.stopped:
            return
        whole = text.encode()[: i + 1].decode(errors="ignore")
        assert whole.startswith(shown)
        held = whole[len(shown) :]
        assert stop.startswith(held)


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_may_stay(include):
    pieces, stopped = feed("one two three", ["two"], include_stop=include)
    assert stopped
    assert "".join(pieces) == ("one two" if include else "one ")


def test_special_tokens_are_shown_only_when_asked():
    im_end = TOKENIZER.backend.token_to_id("<|im_end|>")
    for skip, expected in ((True, ""), (False, "<|im_end|>")):
        detokenizer = Detokenizer(TOKENIZER, skip_special_tokens=skip)
        assert detokenizer.add(im_end) + detokenizer.finish() == expected


def test_ids_beyond_the_tokenizer_have_no_text():
    """Published vocabularies (32064, 57024) are larger than their tokenizers."""
    detokenizer = Detokenizer(TOKENIZER)
    assert detokenizer.add(290) == ""
    assert detokenizer.add(ids("a")[0]) == "a"
    assert detokenizer.add(290) + detokenizer.finish() == ""


def test_bytes_of_a_token():
    assert [TOKENIZER.token_bytes(i) for i in ids("né ")] == [b"n", b"\xc3", b"\xa9", b" "]
    assert TOKENIZER.token_bytes(TOKENIZER.backend.token_to_id("<s>")) == b"<s>"
    assert TOKENIZER.token_bytes(290) == b""


def test_bytes_of_a_sentencepiece_token():
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    backend = Backend(models.BPE(vocab={"\u2581the": 0, "<0xC3>": 1, "a": 2}, merges=[]))
    backend.decoder = decoders.ByteFallback()
    assert [Tokenizer(backend).token_bytes(i) for i in range(3)] == [b" the", b"\xc3", b"a"]
