"""Text to token ids and back, over the tokenizers of transformers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdpp.errors import CheckpointError, RequestError, one_line
from fdpp.tokenizers import chat
from fdpp.tokenizers.detokenizer import Detokenizer
from fdpp.working_directory import existing_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")

_READERS = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}  # of tokenizer.model: package to module

# What some tokens of one byte are called: by the byte fallback of SentencePiece, and in GPT-2's alphabet of bytes.
_BYTE_NAMES = (
    {0xC3: "<0xC3>", 0x80: "<0x80>", 0xA0: "<0xA0>"},
    {0xC3: "\u00c3", 0x80: "\u0122", 0xA0: "\u0142"},
)


class Tokenizer:
    """A tokenizer of transformers behind the few calls that the engine makes.

    Attributes:
        decode: ids to text; special tokens give none, bytes that are no UTF-8 give U+FFFD.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.decode = Detokenizer(self._decode, self._special_tokens(), self._continuations())

    @property
    def pretrained(self) -> PreTrainedTokenizerBase:
        """The tokenizer of transformers."""
        return self._tokenizer

    @property
    def eos_token_id(self) -> int | None:
        return self._tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with the special tokens that the model wants at its start."""
        return self._encode(text, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """The ids of a conversation in the model's chat template, up to where the answer begins.

        Args:
            messages: see :func:`fdpp.tokenizers.chat.render`.
            variables: of the template: ``tools``, ``enable_thinking``, ...
        """
        return self._encode(chat.render(self._tokenizer, messages, variables), add_special_tokens=False)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _special_tokens(self) -> dict[int, str]:
        """The spelling of the tokens that :meth:`_decode` leaves out."""
        added = self._tokenizer.added_tokens_decoder
        if not isinstance(added, Mapping):  # the tokenizer of mistral-common does not tell
            return {}
        return {index: str(token) for index, token in added.items() if token.special and not self._decode([index])}

    def _continuations(self) -> list[list[int]]:
        """Tokens that complete any character that has been begun: see :class:`Detokenizer`.

        0x80 and 0xA0 are the bytes of which one may follow every first byte; after them, 0x80 always may.
        """
        for names in _BYTE_NAMES:
            lead, first, second = self._tokenizer.convert_tokens_to_ids(list(names.values()))
            if None not in (lead, first, second) and self._decode([lead, first, lead, second]) == "\u00c0\u00e0":
                return [[byte] + [first] * count for count in range(3) for byte in (first, second)]
        return []

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except Exception as error:  # lone surrogates, and whatever a tokenizer cannot take
            raise RequestError(f"the prompt cannot be tokenised: {one_line(error)}") from error


def load_directory_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face directory, or None where it holds none. Never runs code of the directory."""
    if not any((path / name).exists() for name in _TOKENIZER_FILES):
        return None
    is_sentence_piece = (path / "tokenizer.model").exists() and not (path / "tokenizer.json").exists()
    if is_sentence_piece and (missing := [name for name, module in _READERS.items() if not _is_installed(module)]):
        raise CheckpointError(f"{path / 'tokenizer.model'}: needs {' and '.join(missing)}: pip install 'fdpp[models]'")
    try:
        config = _tokenizer_config(path)
        if config.get("tokenizer_class") == "ChatGLMTokenizer" and is_sentence_piece:
            return _chatglm(path / "tokenizer.model", config)
        with existing_directory():  # transformers asks for one
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        # The default of SentencePiece vocabularies, which transformers 5 documents and leaves out.
        if is_sentence_piece and tokenizer.bos_token is not None and tokenizer.init_kwargs.get("add_bos_token") is None:
            tokenizer.add_bos_token = True
        return Tokenizer(tokenizer)
    except Exception as error:  # a damaged file can make transformers and tokenizers raise anything
        raise CheckpointError(f"{path}: the tokenizer cannot be loaded: {one_line(error)}") from error


def _chatglm(path: Path, config: Mapping[str, Any]) -> Tokenizer:
    from fdpp.tokenizers.chatglm import load_chatglm

    return Tokenizer(load_chatglm(path, config))


def _tokenizer_config(path: Path) -> Mapping[str, Any]:
    file = path / "tokenizer_config.json"
    content = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return content if isinstance(content, dict) else {}


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False
