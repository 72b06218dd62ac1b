"""Streaming of text: characters stay whole, stop strings never show, the pieces make up the text."""

from __future__ import annotations

import random

import pytest

from fdpp.engine.text_stream import StopMatcher, TextStream
from fdpp.tokenizers.detokenizer import Detokenizer

CONTINUATIONS = [[first] + [b"\x80"] * count for count in range(3) for first in (b"\x80", b"\xa0")]


def decode(ids):
    """Each token is a ``bytes``; a ``str`` is a special token."""
    return b"".join(token for token in ids if isinstance(token, bytes)).decode("utf-8", errors="replace")


def run(tokens, stops=(), special=()):
    shown = []
    detokenizer = Detokenizer(decode, {token: token for token in special}, CONTINUATIONS)
    stream = TextStream(detokenizer, stops, shown.append)
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


@pytest.mark.parametrize("lead", ["\u0080", "\u07ff", "\u0800", "\ud7ff", "\uffff", "\U00010000", "\U0010ffff"])
def test_every_kind_of_character_is_left_out_when_it_is_cut(lead):
    encoded = lead.encode()
    for count in range(1, len(encoded)):
        assert run([b"ab\xef\xbf\xbd", encoded[:count]])[0] == "ab\ufffd"


@pytest.mark.parametrize("widths", [[1], [2], [3], [4, 1]])
@pytest.mark.parametrize("text", ["end \ufffd", "\ufffd", "a\ufffd\ufffd", "\ufffdb"])
def test_a_replacement_character_that_is_text_shows(text, widths):
    assert run(cut(text.encode(), widths))[0] == text


def test_a_replacement_character_that_is_text_shows_at_once():
    stream = TextStream(Detokenizer(decode, {}, CONTINUATIONS), (), lambda text: None)
    stream.push("end \ufffd".encode())
    assert stream.text == "end \ufffd"


def test_where_tokens_are_never_parts_of_characters_nothing_is_left_out():
    alphabet = "".join(map(chr, range(32, 127))) + "\ufffd"
    for text in ("end \ufffd", "\ufffd", "a\ufffdb\ufffd\ufffd"):
        stream = TextStream(lambda ids: "".join(alphabet[i] for i in ids), (), lambda text: None)
        for character in text:
            stream.push(alphabet.index(character))
        stream.finish()
        assert stream.text == text


SPECIAL = ("<end>", "<x>")


@pytest.mark.parametrize(
    ("tokens", "stops", "text"),
    [
        ([b"yes", "<end>", b"no"], ["<end>"], "yes"),
        ([b"yes<end>no"], ["<end>"], "yes"),  # spelled with ordinary tokens
        ([b"yes", "<end>", b"\n", b"no"], ["<end>\n"], "yes"),
        ([b"yes", "<end>", b"no"], ["<end>\n"], "yesno"),
        ([b"ye", b"s", "<end>", "<x>", b"no"], ["s<end><x>"], "ye"),
        ([b"yes", "<x>", b"no"], ["<end>"], "yesno"),
        ([b"yes", "<x>", b"no", "<x>"], [], "yesno"),
        ([b"a", "<end>", b"b"], ["ab", "<end>c"], ""),  # the text that shows holds no stop string either
        ([b"ab", "<end>", b"c"], ["b<end>c", "<end>"], "ab"),
        ([b"ab", "<end>"], ["b<end>c"], "ab"),
        ([b"a\xef\xbf\xbd", "<end>"], ["<end>"], "a\ufffd"),
        ([b"a\xf0\x9f", "<end>"], ["<end>"], "a"),
    ],
)
def test_stop_strings_with_special_tokens(tokens, stops, text):
    streamed, stopped, shown = run(tokens, stops, SPECIAL)
    assert streamed == text
    spelled = "".join(token if isinstance(token, str) else token.decode(errors="replace") for token in tokens)
    assert stopped == any(stop in spelled or stop in decode(tokens) for stop in stops)
    assert not any("\ud800" <= character <= "\udfff" for piece in shown for character in piece)


@pytest.mark.parametrize("seed", range(300))
def test_stop_strings_with_special_tokens_never_pass(seed):
    rng = random.Random(seed)
    tokens = [rng.choice(["<end>", "<x>", *(character.encode() for character in "abé")]) for _ in range(12)]
    spelled = "".join(token if isinstance(token, str) else token.decode() for token in tokens)
    start = rng.randrange(len(tokens))
    wanted = "".join(t if isinstance(t, str) else t.decode() for t in tokens[start : start + rng.randint(1, 4)])
    streamed, stopped, _ = run(tokens, [wanted], SPECIAL)
    before = spelled[: spelled.index(wanted)]
    visible = before.replace("<end>", "").replace("<x>", "")
    assert stopped
    assert streamed == visible or wanted in decode(tokens)  # the text that shows may hold the string earlier
