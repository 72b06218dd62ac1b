"""Text to token ids and back, over the tokenizers of transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fdpp.errors import CheckpointError, RequestError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")

_READERS = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}  # of tokenizer.model: package to module


class Tokenizer:
    """A tokenizer of transformers behind the few calls that the engine makes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @property
    def eos_token_id(self) -> int | None:
        return self._tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with the special tokens that the model wants at its start."""
        return self._encode(text, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a conversation in the model's chat template, up to where the answer begins."""
        _check_messages(messages)
        if not self._tokenizer.chat_template:
            raise RequestError("this model has no chat template; use generate() with a prompt")
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # jinja2 runs the model's program, which may raise anything
            raise RequestError(f"the chat template does not take these messages: {one_line(error)}") from error
        return self._encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; special tokens give none. Bytes that are no UTF-8 give U+FFFD."""
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except Exception as error:  # lone surrogates, and whatever a tokenizer cannot take
            raise RequestError(f"the prompt cannot be tokenised: {one_line(error)}") from error


def load_directory_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face directory, or None where it holds none. Never runs code of the directory."""
    if not any((path / name).exists() for name in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    is_sentence_piece = (path / "tokenizer.model").exists() and not (path / "tokenizer.json").exists()
    if is_sentence_piece and (missing := [name for name, module in _READERS.items() if not _is_installed(module)]):
        raise CheckpointError(f"{path / 'tokenizer.model'}: needs {' and '.join(missing)}: pip install 'fdpp[models]'")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        # The default of SentencePiece vocabularies, which transformers 5 documents and leaves out.
        if is_sentence_piece and tokenizer.bos_token is not None and tokenizer.init_kwargs.get("add_bos_token") is None:
            tokenizer.add_bos_token = True
        return Tokenizer(tokenizer)
    except Exception as error:  # a damaged file can make transformers and tokenizers raise anything
        raise CheckpointError(f"{path}: the tokenizer cannot be loaded: {one_line(error)}") from error


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def _check_messages(messages: object) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RequestError("messages: expected a list of {'role': ..., 'content': ...}")
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise RequestError(f"messages: expected {{'role': ..., 'content': ...}}, got {message!r:.80}")
