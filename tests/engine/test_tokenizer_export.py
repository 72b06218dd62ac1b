"""Tokenizers as the metadata of a GGUF file: the same ids, whatever the text; what cannot be said is refused."""

from __future__ import annotations

import json
import random

import pytest
import tokenizers
import transformers
from gguf.constants import TokenType

from fdpp.errors import CheckpointError
from fdpp.tokenizers import Tokenizer, load_directory_tokenizer
from fdpp.tokenizers.gguf import end_of_text_ids, load_gguf_tokenizer
from fdpp.tokenizers.gguf_export import gguf_tokenizer
from fdpp.tokenizers.gguf_vocabularies import PRE_TOKENIZERS
from tests.engine.models import SPECIAL, VOCAB, tiny_gguf_tokenizer, tiny_tokenizer
from tests.engine.test_gguf_vocabularies import TEXTS, random_texts
from tests.engine.test_tokenizer import sentence_piece_directory, sentence_piece_metadata  # noqa: F401

PREFIX = "tokenizer.ggml."
NASTY = [
    *TEXTS,
    "",
    "\0",
    "</s>",
    "<|im_start|><|im_end|>",
    "a<unk>b",
    "\u2581x \u2581",
    "\udfff".encode("utf-8", "replace").decode(),
    "z" * 3000,
]


def nasty(seed: int) -> list[str]:
    rng = random.Random(seed)
    return [*NASTY, *random_texts(seed), *("".join(rng.choices(NASTY[:-1], k=3)) for _ in range(20))]


def check(tokenizer: Tokenizer, rows: int = VOCAB, ends: frozenset[int] = frozenset({2})) -> dict:
    metadata = gguf_tokenizer(tokenizer, rows, ends)
    read = load_gguf_tokenizer(metadata)
    for text in nasty(rows):
        assert read.encode(text) == tokenizer.encode(text), repr(text)
        assert read.decode(read.encode(text)) == tokenizer.decode(tokenizer.encode(text)), repr(text)
    assert len(metadata[PREFIX + "tokens"]) == len(metadata[PREFIX + "token_type"]) == rows
    assert end_of_text_ids(metadata) >= ends
    return metadata


def saved(path, tokenizer) -> Tokenizer:
    """As a directory has it."""
    tokenizer.save_pretrained(path)
    return load_directory_tokenizer(path)


NAMES = list({row: name for name, row in reversed(PRE_TOKENIZERS.items()) if row.byte_level}.values())


@pytest.mark.parametrize("pre", NAMES)
def test_every_pre_tokenizer(tmp_path, pre):
    ours = load_gguf_tokenizer(tiny_gguf_tokenizer() | {PREFIX + "pre": pre})
    metadata = check(saved(tmp_path, ours.pretrained))
    found, wanted = PRE_TOKENIZERS[metadata[PREFIX + "pre"]], PRE_TOKENIZERS[pre]
    assert (found.ignore_merges, found.byte_level) == (wanted.ignore_merges, True)


def test_what_the_metadata_hold(tmp_path):
    tokenizer = saved(tmp_path, tiny_tokenizer())
    metadata = check(tokenizer, VOCAB + 7)
    expected = tiny_gguf_tokenizer()
    for key in ("model", "pre", "merges", "bos_token_id", "eos_token_id"):
        assert metadata[PREFIX + key] == expected[PREFIX + key], key
    assert metadata["tokenizer.chat_template"] == expected["tokenizer.chat_template"]
    kinds = dict(zip(metadata[PREFIX + "tokens"], metadata[PREFIX + "token_type"], strict=True))
    assert {token for token, kind in kinds.items() if kind == TokenType.CONTROL} == set(SPECIAL)
    assert kinds[f"[PAD{VOCAB}]"] == kinds[f"[PAD{VOCAB + 6}]"] == TokenType.UNUSED
    messages = [{"role": "user", "content": "hi </s>"}]
    assert load_gguf_tokenizer(metadata).encode_chat(messages) == tokenizer.encode_chat(messages)


@pytest.mark.parametrize("around", [(), ("bos",), ("eos",), ("bos", "eos")])
def test_tokens_around_a_text(tmp_path, around):
    flags = {f"{PREFIX}add_{name}_token": name in around for name in ("bos", "eos")}
    ours = load_gguf_tokenizer(tiny_gguf_tokenizer() | flags)
    metadata = check(saved(tmp_path, ours.pretrained))
    assert {key: metadata[key] for key in flags} == flags


def test_words_that_were_added(tmp_path):
    own = tiny_tokenizer()
    own.add_tokens([tokenizers.AddedToken("<tool>", normalized=False, special=False)])
    metadata = check(saved(tmp_path, own), VOCAB + 1)
    assert metadata[PREFIX + "token_type"][VOCAB] == TokenType.USER_DEFINED


def test_more_ends():
    tokenizer = Tokenizer(tiny_tokenizer())
    metadata = check(tokenizer, ends=frozenset({2, 4, 290, 291}))  # 4 is an end by its text
    assert (metadata[PREFIX + "eot_token_id"], metadata[PREFIX + "eom_token_id"]) == (290, 291)
    with pytest.raises(CheckpointError, match=r"expected at most 2 more than eos names, got \[289, 290, 291\]"):
        gguf_tokenizer(tokenizer, VOCAB, {2, 289, 290, 291})


def test_no_tokenizer():
    metadata = gguf_tokenizer(None, 10, {7, 3})
    assert load_gguf_tokenizer(metadata) is None and end_of_text_ids(metadata) == {3, 7}


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("bos", [True, False])
def test_sentence_piece(tmp_path, prefix, bos):
    flags = {PREFIX + "add_space_prefix": prefix, PREFIX + "add_bos_token": bos}
    whole = sentence_piece_metadata()
    ours = load_gguf_tokenizer(whole | flags)
    metadata = check(saved(tmp_path, ours.pretrained), len(whole[PREFIX + "tokens"]))
    assert {key: metadata[key] for key in flags} == flags
    assert metadata[PREFIX + "token_type"][3:259] == [TokenType.BYTE] * 256


def test_tokenizer_model(sentence_piece_directory):  # noqa: F811
    """The file of SentencePiece as transformers 5 reads it: it puts a space before the first text only."""
    tokenizer = load_directory_tokenizer(sentence_piece_directory())
    with pytest.warns(UserWarning, match="blanks before a text, and text after special tokens, get other ids"):
        metadata = gguf_tokenizer(tokenizer, 300, {2})
    read = load_gguf_tokenizer(metadata)
    for text in TEXTS:
        assert read.encode(text.lstrip()) == tokenizer.encode(text.lstrip())


def test_tokens_that_take_blanks(tmp_path):
    with pytest.warns(UserWarning, match="some of its added tokens take the blanks beside them"):
        gguf_tokenizer(changed(tmp_path, lambda c: c["added_tokens"][3].update(rstrip=True)), VOCAB, {2})


def changed(tmp_path, change) -> Tokenizer:
    tiny_tokenizer().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    return load_directory_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(pre_tokenizer={"type": "WhitespaceSplit"}, decoder=None), "expected byte-level BPE or"),
        (
            lambda c: c["pre_tokenizer"].update(add_prefix_space=True),
            "none that a GGUF file can describe gives its ids",
        ),
        (lambda c: c.update(normalizer={"type": "Lowercase"}), "none that a GGUF file can describe gives its ids"),
    ],
)
def test_what_a_file_cannot_say(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        gguf_tokenizer(changed(tmp_path, change), VOCAB + 1, {2})
    assert "\n" not in str(caught.value)


def test_other_models(tmp_path):
    for model in (
        tokenizers.models.WordLevel({"a": 0, "<unk>": 1}, "<unk>"),
        tokenizers.models.Unigram([("a", 0.0)], 0),
    ):
        own = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model))
        kind = type(model).__name__
        with pytest.raises(CheckpointError, match=f"expected byte-level BPE or SentencePiece BPE, got '{kind}'"):
            gguf_tokenizer(Tokenizer(own), 10, ())


def test_more_tokens_than_rows():
    with pytest.raises(CheckpointError, match="expected ids below the 299 rows of the embedding, got 299"):
        gguf_tokenizer(Tokenizer(tiny_tokenizer()), VOCAB - 1, ())
