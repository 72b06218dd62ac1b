"""Tokenizers from the metadata of a GGUF file: byte-level BPE (``gpt2``) and SentencePiece BPE (``llama``).

Built here rather than by transformers, which leaves out the pre-tokenizers of some vocabularies (SmolLM's single
digits among them) and takes seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fdpp.errors import CheckpointError, one_line
from fdpp.tokenizers import Tokenizer
from fdpp.tokenizers.gguf_vocabularies import ENDS, FILE_ENDS, INNER_ENDS, PRE_TOKENIZERS, PreTokenizer
from fdpp.working_directory import existing_directory

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

_PREFIX = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4  # values of token_type
_SPACE = "\u2581"  # SentencePiece's mark for a space
_SENTENCE_PIECE = "llama"
_SENTENCE_PIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}  # where the file does not name them


def load_gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that the metadata describe, or None where there is none.

    Raises:
        CheckpointError: the metadata are inconsistent, or of a kind that is not known.
    """
    kind = metadata.get(_PREFIX + "model")
    if kind in (None, "none", "no_vocab"):
        return None
    tokens = metadata.get(_PREFIX + "tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError("tokenizer.ggml.tokens: expected a list of strings")
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]  # llama.cpp's name for it
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocabulary[token] != index)
        raise CheckpointError(f"tokenizer.ggml.tokens: {twice!r:.80} occurs twice")
    if kind not in (_SENTENCE_PIECE, "gpt2"):
        raise CheckpointError(f"tokenizer.ggml.model: expected 'gpt2' or 'llama', got {kind!r:.80}")
    pre = _pre_tokenizer(metadata) if kind == "gpt2" else None
    try:
        backend = _byte_pairs(vocabulary, metadata, pre) if pre else _sentence_piece(tokens, vocabulary, metadata)
        return Tokenizer(_wrap(backend, tokens, metadata, adds_bos=pre.adds_bos if pre else True))
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions, for instance on merges outside the vocabulary
        raise CheckpointError(f"the tokenizer cannot be built: {one_line(error)}") from error


def wrap_sentence_piece(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer of a SentencePiece vocabulary that is described by a GGUF file's keys."""
    tokens = metadata[_PREFIX + "tokens"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return _wrap(_sentence_piece(tokens, vocabulary, metadata), tokens, metadata, adds_bos=False)


def end_of_text_ids(metadata: Mapping[str, Any]) -> frozenset[int]:
    """The ids that end a text: those that the metadata name, and the tokens that are ends by their text.

    Most files name one end only, although their models use several: that of a turn, that of a document.
    """
    tokens = metadata.get(_PREFIX + "tokens")
    texts = tokens if isinstance(tokens, list) else []
    named = [special_id(metadata, name) for name in ("eos", "eot", "eom", *FILE_ENDS)]
    ids = {index for index in named if index is not None}
    ids.update(index for index, text in enumerate(texts) if text in ENDS)
    for name, candidates in FILE_ENDS.items():
        if special_id(metadata, name) is None:
            ids.update(texts.index(text) for text in candidates if text in texts)
    ends = {texts[index]: index for index in ids if index < len(texts)}
    return frozenset(ids - {ends[text] for text, others in INNER_ENDS if {text, *others} <= ends.keys()})


def special_id(metadata: Mapping[str, Any], name: str) -> int | None:
    """The id of a special token (``bos``, ``padding``, ...), or None where the file has none that can be used."""
    tokens = metadata.get(_PREFIX + "tokens")
    count = len(tokens) if isinstance(tokens, list) else 1 << 32
    default = _SENTENCE_PIECE_IDS.get(name) if metadata.get(_PREFIX + "model") == _SENTENCE_PIECE else None
    for index in (metadata.get(f"{_PREFIX}{name}_token_id"), default):
        if type(index) is int and 0 <= index < count:
            return index
    return None


def _warn_of_bad_ids(metadata: Mapping[str, Any], count: int) -> None:
    """Ids that no text needs, such as that of padding, may be wrong: llama.cpp goes on without them, too."""
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding", *FILE_ENDS):
        key = f"{_PREFIX}{name}_token_id"
        value = metadata.get(key)
        if type(value) is not int and value is not None:
            raise CheckpointError(f"{key}: expected an integer, got {value!r:.80}")
        if value is not None and not 0 <= value < count:
            warnings.warn(f"{key}: {value} is outside the vocabulary of {count} tokens; ignored", stacklevel=4)


def _pre_tokenizer(metadata: Mapping[str, Any]) -> PreTokenizer:
    name = metadata.get(_PREFIX + "pre")
    if name is None:
        warnings.warn(
            "the GGUF file names no pre-tokenizer (tokenizer.ggml.pre); llama.cpp's default is used", stacklevel=3
        )
        name = "default"
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"tokenizer.ggml.pre: expected one of the {len(PRE_TOKENIZERS)} names of llama.cpp, got {name!r:.80}"
        )
    return PRE_TOKENIZERS[name]


def _byte_pairs(vocabulary: dict[str, int], metadata: Mapping[str, Any], pre: PreTokenizer) -> Backend:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = metadata.get(_PREFIX + "merges")
    if not isinstance(merges, list):
        raise CheckpointError("tokenizer.ggml.merges: expected a list of strings")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    backend = Tokenizer(
        models.BPE(vocabulary, pairs, ignore_merges=pre.ignore_merges, byte_fallback=not pre.byte_level)
    )
    backend.normalizer = normalizers.Sequence(
        [
            *([normalizers.NFC()] if pre.nfc else []),
            *([normalizers.Replace(" ", _SPACE)] if pre.marks_spaces else []),
        ]
    )
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in pre.splits]
    spelling = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)] if pre.byte_level else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, *spelling])
    plain = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.ByteLevel() if pre.byte_level else decoders.Sequence(plain)
    return backend


def _sentence_piece(tokens: list[str], vocabulary: dict[str, int], metadata: Mapping[str, Any]) -> Backend:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get(_PREFIX + "scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise CheckpointError("tokenizer.ggml.scores: expected a number for each token")
    backend = Tokenizer(
        models.BPE(
            vocabulary,
            _merges_of_scores(tokens, scores, vocabulary),
            unk_token=tokens[special_id(metadata, "unknown") or 0],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = _flag(metadata, "add_space_prefix", True)
    backend.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(_SPACE)] if prefix else []), normalizers.Replace(" ", _SPACE)]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefix else []),
        ]
    )
    return backend


def _merges_of_scores(tokens: list[str], scores: list[float], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose union scores highest; as merges, every split of a token, best token first."""
    longest = max(map(len, tokens), default=0)
    if longest > _MAX_TOKEN_LENGTH:  # every cut of every token is tried: the work is quadratic in the length
        raise CheckpointError(f"tokens: expected at most {_MAX_TOKEN_LENGTH} characters each, got {longest}")
    merges: list[tuple[str, str]] = []
    for _, token in sorted(zip(scores, tokens, strict=True), key=lambda pair: -pair[0]):
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        splits = [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
        if len(merges) > _MAX_MERGES:
            raise CheckpointError(f"tokens: expected at most {_MAX_MERGES} ways to split them, got more")
        merges += sorted(splits, key=lambda split: (vocabulary[split[0]], vocabulary[split[1]]))
    return merges


_MAX_TOKEN_LENGTH = 1024  # published vocabularies stay below 200
_MAX_MERGES = 1 << 22


def _wrap(backend: Backend, tokens: list[str], metadata: Mapping[str, Any], adds_bos: bool) -> PreTrainedTokenizerFast:
    """The backend with its special tokens, as a tokenizer of transformers."""
    from tokenizers import AddedToken, processors

    with existing_directory():  # transformers asks for one
        from transformers import PreTrainedTokenizerFast

    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise CheckpointError(f"tokenizer.chat_template: expected a string, got {template!r:.80}")
    kinds = metadata.get(_PREFIX + "token_type", [])
    if not isinstance(kinds, list):
        raise CheckpointError(f"tokenizer.ggml.token_type: expected a list, got {kinds!r:.80}")
    _warn_of_bad_ids(metadata, len(tokens))
    kinds = kinds[: len(tokens)] + [None] * (len(tokens) - len(kinds))
    ends = {tokens[index] for index in end_of_text_ids(metadata) if index < len(tokens)}
    marked = list(zip(tokens, kinds, strict=True))
    # An end of a text is a control token even where the converter has called it a word.
    control = [token for token, kind in marked if kind == _CONTROL or token in ends]
    words = [token for token, kind in marked if kind == _USER_DEFINED and token not in ends]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    backend.add_tokens([AddedToken(token, normalized=False) for token in words])
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {token: special_id(metadata, name) for token, name in names.items()}
    special = {token: tokens[index] for token, index in ids.items() if index is not None}
    before, after = _around(metadata, special, adds_bos)
    if before or after:
        used = [(special[token], ids[token]) for token in ("bos_token", "eos_token") if token in special]
        backend.post_processor = processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special)


def _around(metadata: Mapping[str, Any], special: Mapping[str, str], adds_bos: bool) -> list[list[str]]:
    """The tokens that every text begins with, and those that it ends with: none or one of either."""
    around = []
    for token, default in (("bos_token", adds_bos), ("eos_token", False)):
        added = _flag(metadata, f"add_{token}", default)
        if added and token not in special:
            raise CheckpointError(f"{_PREFIX}{token}_id: expected the id of a token, because every text gets it")
        around.append([special[token]] if added else [])
    return around


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    if type(value := metadata.get(_PREFIX + name, default)) is not bool:
        raise CheckpointError(f"{_PREFIX}{name}: expected true or false, got {value!r:.80}")
    return value
