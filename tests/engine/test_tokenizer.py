"""Tokenizers from GGUF metadata: the same ids as the tokenizer that the metadata were made of."""

from __future__ import annotations

import json
import struct

import pytest
import tokenizers
import transformers

from fdpp.errors import CheckpointError
from fdpp.tokenizers import Tokenizer, load_directory_tokenizer
from fdpp.tokenizers import gguf as gguf_tokenizer
from fdpp.tokenizers.gguf import end_of_text_ids, load_gguf_tokenizer
from tests.engine.models import CHAT_TEMPLATE, tiny_gguf_tokenizer, tiny_tokenizer

TEXTS = [
    "the end",
    " and\n\n  then",
    "é日本 😀",
    "<|im_start|>user\nhi<|im_end|>",
    "a</s>b",
    "I'll pay 12",
    "\t \r\n x",
]


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level(text):
    ours, theirs = load_gguf_tokenizer(tiny_gguf_tokenizer()), tiny_tokenizer()
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "a 1234", ["a", "Ġ1234"]),
        ("smollm", "a 1234", ["a", "Ġ", "1", "2", "3", "4"]),
        ("llama-bpe", "a 1234", ["a", "Ġ", "123", "4"]),
        ("llama-bpe", "I'LL", ["I", "'LL"]),
        ("qwen2", "a 1234", ["a", "Ġ", "1", "2", "3", "4"]),
        ("qwen2", "(foo)\n\nbar", ["(foo", ")ĊĊ", "bar"]),
        ("tekken", "fooBar", ["foo", "Bar"]),
    ],
)
def test_pre_tokenizers(pre, text, pieces):
    tokenizer = load_gguf_tokenizer(tiny_gguf_tokenizer() | {"tokenizer.ggml.pre": pre})
    backend = tokenizer._tokenizer.backend_tokenizer
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_no_pre_tokenizer_warns():
    metadata = tiny_gguf_tokenizer()
    del metadata["tokenizer.ggml.pre"]
    with pytest.warns(UserWarning, match="llama.cpp's default is used"):
        load_gguf_tokenizer(metadata)


def sentence_piece_metadata() -> dict:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["▁t", "he", "▁the", "en", "▁en", "▁end", "▁a", "nd", "▁and"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, "▁", *letters]
    scores = [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_sentence_piece():
    metadata = sentence_piece_metadata()
    tokenizer = load_gguf_tokenizer(metadata)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert [tokens[i] for i in tokenizer.encode("the end and")] == ["<s>", "▁the", "▁end", "▁and"]
    assert [tokens[i] for i in tokenizer.encode("é")] == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    for text in ("the end and é 日本  x", "a"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [tokens[i] for i in tokenizer.encode("a</s>")][-1] == "</s>"


def test_sentence_piece_without_prefix_and_bos():
    metadata = sentence_piece_metadata() | {
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
    }
    tokens = metadata["tokenizer.ggml.tokens"]
    assert [tokens[i] for i in load_gguf_tokenizer(metadata).encode("a and")] == ["a", "▁and"]


def test_end_of_text_ids():
    assert end_of_text_ids(tiny_gguf_tokenizer()) == {2, 4}  # </s> by its id, <|im_end|> as the end of a turn
    assert end_of_text_ids({"tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.eos_token_id": "x"}) == {9}
    assert end_of_text_ids({}) == frozenset()


def test_no_tokenizer_in_the_file():
    assert load_gguf_tokenizer({}) is None
    assert load_gguf_tokenizer({"tokenizer.ggml.model": "no_vocab"}) is None


def test_chat_template():
    tokenizer = load_gguf_tokenizer(tiny_gguf_tokenizer())
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}]
    expected = "<|im_start|>system\nx<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode_chat(messages) == tokenizer.encode(expected)


@pytest.mark.parametrize("template", ["{{ undefined.attribute }}", "{% for %}", "{{ 1 / 0 }}", "{% include 'x' %}"])
def test_templates_that_fail(template):
    from fdpp.errors import RequestError

    tokenizer = load_gguf_tokenizer(tiny_gguf_tokenizer() | {"tokenizer.chat_template": template})
    with pytest.raises(RequestError, match="chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])


def test_bos_comes_once_with_a_chat_template():
    """A template writes the first token itself; encoding must not add another."""
    metadata = tiny_gguf_tokenizer() | {
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "<s>" + CHAT_TEMPLATE,
    }
    tokenizer = load_gguf_tokenizer(metadata)
    assert tokenizer.encode("a")[0] == 1
    assert tokenizer.encode_chat([{"role": "user", "content": "hi"}]).count(1) == 1


def test_an_empty_template_is_none():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    from fdpp.errors import RequestError

    with pytest.raises(RequestError, match="no chat template"):
        Tokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=backend)).encode_chat(
            [{"role": "user", "content": "a"}]
        )


@pytest.mark.parametrize("tokens", [["a" * 2_000_000], ["a" * k for k in range(1, 5000)]])
def test_a_sentence_piece_vocabulary_of_absurd_tokens_is_refused_at_once(tokens):
    vocabulary = {token: index for index, token in enumerate(tokens)}
    with pytest.raises(CheckpointError, match="at most 1024 characters"):
        gguf_tokenizer._merges_of_scores(tokens, [0.0] * len(tokens), vocabulary)


def sentence_piece_model() -> bytes:
    """tokenizer.model of :func:`sentence_piece_metadata`: a protobuf message of pieces, a trainer and a normaliser."""

    def number(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)

    def field(key: int, data: bytes) -> bytes:
        return number(key << 3 | 2) + number(len(data)) + data

    metadata = sentence_piece_metadata()
    columns = (metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    pieces = b"".join(
        field(1, field(1, token.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + number(kind))
        for token, score, kind in zip(*columns, strict=True)
    )
    trainer = b"\x18\x02" + number(35 << 3) + b"\x01"  # BPE, with bytes for what is unknown
    return pieces + field(2, trainer) + field(3, field(1, b"identity"))


@pytest.fixture
def sentence_piece_directory(tmp_path):
    def make(**config):
        (tmp_path / "tokenizer.model").write_bytes(sentence_piece_model())
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(special | config))
        return tmp_path

    return make


@pytest.mark.parametrize(("config", "bos"), [({}, [1]), ({"add_bos_token": True}, [1]), ({"add_bos_token": False}, [])])
def test_tokenizer_model_without_tokenizer_json(sentence_piece_directory, config, bos):
    ours = load_directory_tokenizer(sentence_piece_directory(**config))
    gguf = load_gguf_tokenizer(sentence_piece_metadata() | {"tokenizer.ggml.add_bos_token": bool(bos)})
    for text in ("the end and", "a", "the  end"):
        assert ours.encode(text)[: len(bos)] == bos
        assert ours.encode(text) == gguf.encode(text)


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        (["sentencepiece"], "needs sentencepiece: pip install"),
        (["google.protobuf"], "needs protobuf: pip install"),
        (["sentencepiece", "google.protobuf"], "needs sentencepiece and protobuf: pip install 'fdpp\\[models\\]'"),
    ],
)
def test_what_reads_tokenizer_model_is_named(sentence_piece_directory, monkeypatch, absent, message):
    monkeypatch.setattr("fdpp.tokenizers._is_installed", lambda module: module not in absent)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_directory_tokenizer(sentence_piece_directory())
    assert "\n" not in str(caught.value)
