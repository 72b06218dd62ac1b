"""ChatGLM2's tokenizer against SentencePiece itself, with the tokens and the prefix that its own code adds."""

from __future__ import annotations

import io
import json

import pytest

from fdpp.errors import CheckpointError
from fdpp.tokenizers import load_directory_tokenizer

sentencepiece = pytest.importorskip("sentencepiece")

TEXTS = [
    "the cat sat on the mat",
    " two  spaces and a tab\tand\nlines\n",
    "你好，世界。问：答：",
    "cafe\u0301 \U0001f600 \u00e9",
    "",
    "x" * 300,
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path, model = tmp_path_factory.mktemp("chatglm"), io.BytesIO()
    corpus = ["the cat sat on the mat and the dog lay on the rug", "你好，世界。问：答：", "a tab and lines"] * 50
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    (path / "tokenizer.model").write_bytes(model.getvalue())
    (path / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "ChatGLMTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_chatglm.X", None]}}
        )
    )
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text(directory, text):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    count, tokenizer = pieces.get_piece_size(), load_directory_tokenizer(directory)
    ids = tokenizer.encode(text)
    assert ids == [count + 1, count + 3, *pieces.encode(text)]  # [gMASK] sop
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == pieces.eos_id()


def test_a_conversation_in_rounds(directory):
    tokenizer = load_directory_tokenizer(directory)
    messages = [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "the cat"},
        {"role": "user", "content": "sat"},
    ]
    ids = tokenizer.encode_chat(messages)
    assert ids[:2] == tokenizer.encode("")[:2]
    assert tokenizer.decode(ids) == "[Round 1]\n\n问：你好\n\n答：the cat\n\n[Round 2]\n\n问：sat\n\n答："


def test_roles_of_chatglm3(directory, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((directory / "tokenizer.model").read_bytes())
    config = {"tokenizer_class": "ChatGLMTokenizer", "added_tokens_decoder": {"64795": {"content": "<|user|>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ids = load_directory_tokenizer(tmp_path).encode_chat([{"role": "user", "content": "the cat"}])
    count = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model")).get_piece_size()
    assert ids[2] == count + 6 and ids[-1] == count + 7  # <|user|>, <|assistant|>


@pytest.mark.parametrize("content", [b"", b"no model", b"\x0a\xff\xff\xff\xff\x0f"])
def test_damaged_files_are_refused(directory, tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_bytes((directory / "tokenizer_config.json").read_bytes())
    with pytest.raises(CheckpointError, match="the tokenizer cannot be loaded"):
        load_directory_tokenizer(tmp_path)
