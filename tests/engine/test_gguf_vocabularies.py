"""What the name of a pre-tokenizer and the text of tokens imply: every name of the table, against a second engine of
expressions and, where transformers has the tokenizer, against that."""

from __future__ import annotations

import itertools
import random
import re
import unicodedata
import warnings

import pytest
import regex
import transformers

from fdpp.errors import CheckpointError
from fdpp.tokenizers.gguf import end_of_text_ids, load_gguf_tokenizer
from fdpp.tokenizers.gguf_vocabularies import ENDS, FILE_ENDS, INNER_ENDS, PRE_TOKENIZERS
from tests.engine.models import MERGES, tiny_gguf_tokenizer, tiny_vocabulary

TEXTS = [
    "Hello world, I'll pay 12345678 dollars!\n\nIt's John's. DON'T SHOUT'LL\r\n\r\n  x = foo(bar)[1];\t\t// /* a */",
    "\u65e5\u672c\u8a9e\u306e\u6f22\u5b57\u3002 \ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22 \u1797\u17b6\u179f\u17b6",
    "e\u0301te\u0301 \u00e9t\u00e9 \u0915\u094d\u0937 \u00c5ngstr\u00f6m \u0130stanbul \u017fharp \u01c5",
    "1 22 333 4444 55555 666666 7777777 a1b22c333 \u0661\u0662\u0663\u0664 \u00bd \u2167",
    "iPhone XMLHttpRequest camelCase UPPER lower MiXeD \U0001f600\U0001f468\u200d\U0001f469 \u20ac100",
    "  a  b \n \n\n   end  \u00a0x\u3000y  ",
]


def random_texts(seed: int, count: int = 40) -> list[str]:
    rng = random.Random(seed)
    pieces = [*"".join(TEXTS), "  ", "\n\n", " 12", "'ll", "'S", "\r\n", "e\u0301", "\u6f22"]
    return TEXTS + ["".join(rng.choices(pieces, k=rng.randrange(1, 25))) for _ in range(count)]


def metadata(pre: str, **changes) -> dict:
    return tiny_gguf_tokenizer() | {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False} | changes


def split(text: str, expressions: tuple[str, ...]) -> list[str]:
    """The pieces of a text by the module regex: matches, and what lies between them."""
    pieces = [text]
    for expression in expressions:
        python = re.sub(r"\\x\{(\w+)\}", lambda code: rf"\U{int(code[1], 16):08x}", expression)
        parts = []
        for piece in pieces:
            cuts = [0, *itertools.chain(*(match.span() for match in regex.finditer(python, piece, regex.V1)))]
            cuts.append(len(piece))
            parts += [piece[a:b] for a, b in itertools.pairwise(cuts) if a < b]
        pieces = parts
    return pieces


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_pieces(pre):
    row = PRE_TOKENIZERS[pre]
    backend = load_gguf_tokenizer(metadata(pre))._tokenizer.backend_tokenizer
    for text in random_texts(len(pre)):
        text = backend.normalizer.normalize_str(text)
        assert not row.nfc or unicodedata.is_normalized("NFC", text)
        found = [text[start:stop] for _, (start, stop) in backend.pre_tokenizer.pre_tokenize_str(text)]
        assert found == split(text, row.splits), repr(text)


THEIRS = {
    "qwen2": transformers.Qwen2Tokenizer,
    "gpt-2": transformers.GPT2Tokenizer,
    "olmo": transformers.GPTNeoXTokenizer,
    "command-r": transformers.CohereTokenizer,
}
if hasattr(transformers, "Qwen3_5Tokenizer"):  # not in the first releases of transformers 5
    THEIRS["qwen35"] = transformers.Qwen3_5Tokenizer


@pytest.mark.parametrize("pre", THEIRS)
def test_ids_equal_those_of_transformers(pre):
    tokens = tiny_vocabulary()
    vocabulary = {token: index for index, token in enumerate(tokens)}
    theirs = THEIRS[pre](vocab=vocabulary, merges=MERGES, add_prefix_space=False)
    ours = load_gguf_tokenizer(metadata(pre))
    for text in random_texts(5, 100):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), repr(text)


IGNORING_MERGES = {
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken",
    "youtu", "minicpm5", "granite-embed-multi-97m",
}  # fmt: skip
ADDING_BOS = {
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken",
    "chameleon", "gemma4", "granite-embed-multi-311m",
}  # fmt: skip


@pytest.mark.parametrize("pre", [name for name, row in PRE_TOKENIZERS.items() if row.byte_level])
def test_ignored_merges_and_bos(pre):
    """A word of the vocabulary that no merge makes, and the token before a text that does not say what comes there."""
    tokens = [*tiny_vocabulary(), "\u0120zq"]
    data = metadata(pre, **{"tokenizer.ggml.tokens": tokens})
    ids = load_gguf_tokenizer(data).encode(" zq")
    assert (ids == [len(tokens) - 1]) == (pre in IGNORING_MERGES)
    del data["tokenizer.ggml.add_bos_token"]
    bos = [data["tokenizer.ggml.bos_token_id"]] if pre in ADDING_BOS else []
    assert load_gguf_tokenizer(data).encode(" zq") == bos + ids


def test_the_file_wins_over_the_name():
    assert load_gguf_tokenizer(metadata("llama-bpe")).encode("the") == load_gguf_tokenizer(metadata("gpt-2")).encode(
        "the"
    )
    both = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    ids = load_gguf_tokenizer(metadata("gpt-2", **both)).encode("the")
    assert (ids[0], ids[-1]) == (1, 2)
    assert load_gguf_tokenizer(metadata("gpt-2", **both)).encode_chat([{"role": "user", "content": "a"}])[0] != 1


def with_tokens(*added: str, kind: int = 1) -> dict:
    """A vocabulary whose named end is a token of no meaning."""
    tokens = [token for token in tiny_vocabulary() if token not in ENDS] + ["the named end", *added]
    kinds = [1] * (len(tokens) - len(added)) + [kind] * len(added)
    named = {"tokenizer.ggml.eos_token_id": tokens.index("the named end"), "tokenizer.ggml.bos_token_id": 0}
    return metadata("gpt-2", **named, **{"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds})


def texts_of_ends(data: dict) -> set[str]:
    return {data["tokenizer.ggml.tokens"][index] for index in end_of_text_ids(data)} - {"the named end"}


FILE_TEXTS = [text for texts in FILE_ENDS.values() for text in texts]


@pytest.mark.parametrize("text", [*sorted(ENDS), *FILE_TEXTS])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_each_text_ends(text, kind):
    """Whatever its type: it is a control token, which a prompt may contain and a text never shows."""
    data = with_tokens("<|something|>", text, kind=kind)
    assert texts_of_ends(data) == {text}
    tokenizer, number = load_gguf_tokenizer(data), len(data["tokenizer.ggml.tokens"]) - 1
    assert number in tokenizer.encode(f"a{text}b")
    assert tokenizer.decode([number]) == ""


def test_all_texts_end_together():
    inner = {text for text, _ in INNER_ENDS}
    assert texts_of_ends(with_tokens(*sorted(ENDS), *FILE_TEXTS)) == {*ENDS, *FILE_TEXTS} - inner


@pytest.mark.parametrize(("text", "others"), INNER_ENDS)
def test_ends_of_a_part(text, others):
    assert texts_of_ends(with_tokens(text, *others)) == set(others)
    for count in range(len(others)):
        assert texts_of_ends(with_tokens(text, *others[:count])) == {text, *others[:count]}


@pytest.mark.parametrize("name", FILE_ENDS)
def test_a_named_id_replaces_the_texts(name):
    data = with_tokens("other", *FILE_ENDS[name])
    data[f"tokenizer.ggml.{name}_token_id"] = data["tokenizer.ggml.tokens"].index("other")
    assert texts_of_ends(data) == {"other"}


NAMES = ("bos", "eos", "eot", "eom", "unknown", "padding", *FILE_ENDS)


@pytest.mark.parametrize("value", [300, 2**31, 2**32 - 1, -1])
@pytest.mark.parametrize("name", NAMES)
def test_an_id_outside_the_vocabulary_that_nothing_needs(name, value):
    good, bad = metadata("gpt-2"), metadata("gpt-2", **{f"tokenizer.ggml.{name}_token_id": value})
    with pytest.warns(UserWarning, match=f"{name}_token_id: {value} is outside the vocabulary of 300 tokens; ignored"):
        tokenizer = load_gguf_tokenizer(bad)
    for text in TEXTS:
        assert tokenizer.encode(text) == load_gguf_tokenizer(good).encode(text)
    assert value not in end_of_text_ids(bad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["1", 1.0, True, [1]])
def test_ids_that_are_no_integers(name, value):
    with pytest.raises(CheckpointError, match=f"{name}_token_id: expected an integer, got"):
        load_gguf_tokenizer(metadata("gpt-2", **{f"tokenizer.ggml.{name}_token_id": value}))


@pytest.mark.parametrize(("name", "flag"), [("bos", "add_bos_token"), ("eos", "add_eos_token")])
@pytest.mark.parametrize("value", [None, 300, -1])
def test_an_id_that_texts_need(name, flag, value):
    data = metadata("gpt-2", **{f"tokenizer.ggml.{name}_token_id": value, f"tokenizer.ggml.{flag}": True})
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match=f"{name}_token_id: expected the id"):
        warnings.simplefilter("ignore")
        load_gguf_tokenizer({key: value for key, value in data.items() if value is not None})


def test_sentence_piece_has_ids_of_its_own():
    tokens = ["<unk>", "<s>", "end", *(f"<0x{byte:02X}>" for byte in range(256))]
    data = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": [0.0] * 259}
    assert end_of_text_ids(data) == {2}
    assert load_gguf_tokenizer(data).encode("a")[0] == 1


def test_empty_and_repeated_tokens():
    tokens = tiny_vocabulary()
    load_gguf_tokenizer(metadata("gpt-2", **{"tokenizer.ggml.tokens": [*tokens, "", ""]}))
    with pytest.raises(CheckpointError, match="'the' occurs twice"):
        load_gguf_tokenizer(metadata("gpt-2", **{"tokenizer.ggml.tokens": [*tokens, "the"]}))
