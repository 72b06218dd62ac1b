"""Tokenizers from the metadata of a GGUF file: byte-level BPE (``gpt2``) and SentencePiece BPE (``llama``).

Built here rather than by transformers, which leaves out the pre-tokenizers of some vocabularies (SmolLM's single
digits among them) and takes seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from fdpp.engine.tokenizer import Tokenizer
from fdpp.errors import CheckpointError, one_line
from fdpp.working_directory import existing_directory

_PREFIX = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4  # values of token_type
_SPACE = "\u2581"  # SentencePiece's mark for a space

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre to the expressions that split a text, one after the other.
_SPLITS = {
    "default": (_GPT2,),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "starcoder": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "tekken": (_TEKKEN,),
}
# Ends of a turn that some converters leave out of the metadata.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>")


def load_gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that the metadata describe, or None where there is none.

    Raises:
        CheckpointError: the metadata are inconsistent, or of a kind that is not known.
    """
    kind = metadata.get(_PREFIX + "model")
    if kind is None:
        return None
    tokens = metadata.get(_PREFIX + "tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError("tokenizer.ggml.tokens: expected a list of strings")
    if not isinstance(kind, str) or kind not in _BUILDERS:
        raise CheckpointError(f"tokenizer.ggml.model: expected one of {sorted(_BUILDERS)}, got {kind!r:.80}")
    try:
        backend = _BUILDERS[kind](tokens, metadata)
        return Tokenizer(_wrap(backend, tokens, metadata, adds_bos=kind == "llama"))
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions, for instance on merges outside the vocabulary
        raise CheckpointError(f"the tokenizer cannot be built: {one_line(error)}") from error


def end_of_text_ids(metadata: Mapping[str, Any]) -> frozenset[int]:
    """The ids that end a text: those that the metadata name, and the ends of a turn in the vocabulary."""
    ids = [metadata.get(f"{_PREFIX}{name}_token_id") for name in ("eos", "eot", "eom")]
    tokens = metadata.get(_PREFIX + "tokens")
    if isinstance(tokens, list):
        ids.extend(index for index, token in enumerate(tokens) if token in _TURN_ENDS)
    return frozenset(token for token in ids if type(token) is int)


def _byte_level(tokens: list[str], metadata: Mapping[str, Any]):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pre = metadata.get(_PREFIX + "pre")
    if pre is None:
        warnings.warn("the GGUF file names no pre-tokenizer (tokenizer.ggml.pre); GPT-2's is used", stacklevel=2)
        pre = "default"
    if not isinstance(pre, str) or pre not in _SPLITS:
        raise CheckpointError(f"tokenizer.ggml.pre: expected one of {sorted(_SPLITS)}, got {pre!r:.80}")
    merges = metadata.get(_PREFIX + "merges")
    if not isinstance(merges, list):
        raise CheckpointError("tokenizer.ggml.merges: expected a list of strings")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in _SPLITS[pre]]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentence_piece(tokens: list[str], metadata: Mapping[str, Any]):
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get(_PREFIX + "scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise CheckpointError("tokenizer.ggml.scores: expected a number for each token")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = metadata.get(_PREFIX + "unknown_token_id", 0)
    backend = Tokenizer(
        models.BPE(
            vocabulary,
            _merges_of_scores(tokens, scores, vocabulary),
            unk_token=_token(tokens, unknown),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = metadata.get(_PREFIX + "add_space_prefix", True)
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
_BUILDERS = {"gpt2": _byte_level, "llama": _sentence_piece}


def _wrap(backend, tokens: list[str], metadata: Mapping[str, Any], adds_bos: bool):
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
    marked = list(zip(tokens, kinds, strict=False))
    backend.add_special_tokens([AddedToken(token, normalized=False) for token, kind in marked if kind == _CONTROL])
    backend.add_tokens([AddedToken(token, normalized=False) for token, kind in marked if kind == _USER_DEFINED])
    special = {
        f"{name}_token": _token(tokens, metadata[f"{_PREFIX}{key}_token_id"])
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if f"{_PREFIX}{key}_token_id" in metadata
    }
    if metadata.get(_PREFIX + "add_bos_token", adds_bos) and "bos_token" in special:
        bos = special["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, metadata[_PREFIX + "bos_token_id"])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special)


def _token(tokens: list[str], index: object) -> str:
    if type(index) is not int or not 0 <= index < len(tokens):
        raise CheckpointError(f"special token id: expected an integer in 0..{len(tokens) - 1}, got {index!r:.80}")
    return tokens[index]
