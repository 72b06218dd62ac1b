"""Streaming of text: characters stay whole, stop strings never show, the pieces make up the text."""

from __future__ import annotations

import random

import pytest

from fdpp.engine.text_stream import StopMatcher, TextStream


def run(tokens, stops=()):
    """A decoder of bytes: each token is a ``bytes``."""
    shown = []
    stream = TextStream(lambda ids: b"".join(ids).decode("utf-8", errors="replace"), stops, shown.append)
    stopped = any(stream.push(token) for token in tokens) or stream.finish()
    assert "".join(shown) == stream.text
    assert all(shown)
    return stream.text, stopped, shown


def cut(data: bytes, widths):
    """Data in pieces of the given widths, repeated."""
    pieces, at, i = [], 0, 0
    while at < len(data):
        pieces.append(data[at : at + widths[i % len(widths)]])
        at, i = at + widths[i % len(widths)], i + 1
    return pieces


def random_text(rng: random.Random, alphabet: str, longest: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(0, longest)))


def random_widths(rng: random.Random) -> list[int]:
    return [rng.randint(1, 5) for _ in range(rng.randint(1, 4))]


@pytest.mark.parametrize("seed", range(300))
def test_text_comes_out_whole(seed):
    rng = random.Random(seed)
    text = random_text(rng, "az é\u00df\u65e5\u672c\U0001f600\u0300\n", 40)
    streamed, stopped, shown = run(cut(text.encode(), random_widths(rng)))
    assert streamed == text and not stopped
    assert not any("\ufffd" in piece for piece in shown)


@pytest.mark.parametrize("seed", range(500))
def test_stop_strings_never_show(seed):
    rng = random.Random(seed)
    text = random_text(rng, "abé", 30)
    stops = [random_text(rng, "abé", 3) + rng.choice("abé") for _ in range(rng.randint(1, 3))]
    streamed, stopped, _ = run(cut(text.encode(), random_widths(rng)), stops)
    assert stopped == any(stop in text for stop in stops)
    if not stopped:
        assert streamed == text
    else:  # cut before one of them, and none of the others is left
        assert streamed in [text[: text.index(stop)] for stop in stops if stop in text]
        assert not any(stop in streamed for stop in stops)


def test_nothing_is_held_longer_than_needed():
    matcher = StopMatcher(["<end>"])
    assert matcher.push("a<e") == ("a", False)
    assert matcher.push("x<") == ("<ex", False)
    assert matcher.push("end>b") == ("", True)


@pytest.mark.parametrize("tail", [b"\xf0", b"\xf0\x9f", b"\xf0\x9f\x98"])
def test_a_character_cut_off_by_the_end_is_left_out(tail):
    assert run([b"ab", tail])[0] == "ab"


def test_bytes_that_are_no_text():
    assert run([b"\xff", b"a", b"\xff\xfe", b"b"])[0] == "\ufffda\ufffd\ufffdb"
