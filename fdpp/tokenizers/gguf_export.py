"""The tokenizer of a model as the metadata of a GGUF file, from which :mod:`fdpp.tokenizers.gguf` builds it again.

What a file cannot say is found by trying: the metadata must give the ids that the tokenizer gives.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from gguf.constants import TokenType

from fdpp.errors import CheckpointError
from fdpp.tokenizers import Tokenizer
from fdpp.tokenizers.gguf import end_of_text_ids, load_gguf_tokenizer
from fdpp.tokenizers.gguf_vocabularies import PRE_TOKENIZERS

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_PREFIX = "tokenizer.ggml."
_SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unknown": "unk_token_id", "padding": "pad_token_id"}
_MORE_ENDS = ("eot", "eom")  # keys of ends beside eos
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# Where tokenizers differ: blanks, lines, digits, apostrophes, case, marks, scripts, combining letters, code.
_TEXTS = (
    "Hello world, I'll pay 12345678 dollars!\n\nIt's John's. DON'T SHOUT'LL\r\n\r\n  x = foo(bar)[1];\t\t// /* a */",
    "\u65e5\u672c\u8a9e\u306e\u6f22\u5b57\u3002 \ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22 \u1797\u17b6\u179f\u17b6",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0645\u0631\u062d\u0628\u0627 \u03b1\u03b2\u03b3",
    "e\u0301te\u0301 \u00e9t\u00e9 \u0915\u094d\u0937 \u00c5ngstr\u00f6m \u0130stanbul \u017fharp \u01c5 \ufb01",
    "1 22 333 4444 55555 666666 7777777 a1b22c333 \u0661\u0662\u0663\u0664 \u00bd \u2167 3.14 1,000",
    "iPhone XMLHttpRequest camelCase UPPER lower MiXeD \U0001f600\U0001f468\u200d\U0001f469 \u20ac100 a_b __init__",
    "  a  b \n \n\n   end  \u00a0x\u3000y  ",
    " leading", "trailing ", "\n", "    ", "a\x00b\x07\x7f", "...!!!???---", "'s 'S 're \u2019s",
)  # fmt: skip
_TRIED_TOKENS = 16  # of the added ones, amid text


def gguf_tokenizer(tokenizer: Tokenizer | None, rows: int, ends: Collection[int]) -> dict[str, Any]:
    """The metadata of a tokenizer.

    Args:
        tokenizer: None where the model has none.
        rows: of the embedding; tokens are made up to that number.
        ends: the ids that end a text.

    Raises:
        CheckpointError: it is of a kind that GGUF files do not have, or no metadata give the same ids.
    """
    if tokenizer is None:
        return {_PREFIX + "model": "none"} | _named_ends(("eos", *_MORE_ENDS), sorted(ends))
    backend: Any = getattr(tokenizer.pretrained, "backend_tokenizer", None)
    described = {} if backend is None else json.loads(backend.to_str())
    model = described.get("model", {})
    if model.get("type") != "BPE" or not (model.get("byte_fallback") or '"ByteLevel"' in json.dumps(described)):
        kind = model.get("type") or type(tokenizer.pretrained).__name__
        raise CheckpointError(f"the tokenizer: expected byte-level BPE or SentencePiece BPE, got {kind!r:.80}")
    common = _vocabulary(backend, described, rows) | _special_tokens(tokenizer)
    if isinstance(template := getattr(tokenizer.pretrained, "chat_template", None), str):
        common["tokenizer.chat_template"] = template
    if model.get("byte_fallback"):
        found = _first_same(tokenizer, _sentence_pieces(model, common), described, is_lenient=True)
    else:
        found = _first_same(tokenizer, _byte_pairs(backend, model, common), described)
    return found | _named_ends(_MORE_ENDS, sorted(set(ends) - end_of_text_ids(found)))


def _first_same(
    tokenizer: Tokenizer, tried: Sequence[dict[str, Any]], described: dict[str, Any], is_lenient: bool = False
) -> dict[str, Any]:
    """The first metadata that give the ids of the tokenizer; **warns** of what they are known to leave out.

    Args:
        is_lenient: whether they may differ in blanks before a text and in text after special tokens.
    """
    built = [(metadata, load_gguf_tokenizer(metadata)) for metadata in tried]
    added = described.get("added_tokens", [])
    amid_text = [f"a{token['content']}b" for token in added[:_TRIED_TOKENS]]
    inner = [text for text in _TEXTS if not text[0].isspace()]
    for texts in ([*_TEXTS, *amid_text], inner)[: 1 + is_lenient]:
        for metadata, read in built:
            if read is not None and all(read.encode(text) == tokenizer.encode(text) for text in texts):
                if texts is inner:
                    _warn("blanks before a text, and text after special tokens, get other ids, as in llama.cpp")
                if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added):
                    _warn("some of its added tokens take the blanks beside them, which a GGUF file does not say")
                return metadata
    raise CheckpointError(f"the tokenizer: none that a GGUF file can describe gives its ids ({len(tried)} were tried)")


def _warn(text: str) -> None:
    warnings.warn(f"the tokenizer: {text}", stacklevel=6)


def _vocabulary(backend: Backend, described: dict[str, Any], rows: int) -> dict[str, Any]:
    """Tokens and their types; an id without a token gets one that no text has."""
    ids = backend.get_vocab(with_added_tokens=True)
    if (most := max(ids.values(), default=-1)) >= rows:
        raise CheckpointError(f"the tokenizer: expected ids below the {rows} rows of the embedding, got {most}")
    tokens = [f"[PAD{index}]" for index in range(rows)]
    kinds = [TokenType.UNUSED] * rows
    for token, index in ids.items():
        tokens[index] = token
        kinds[index] = TokenType.BYTE if _is_byte(token, described) else TokenType.NORMAL
    for added in described.get("added_tokens", []):
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    return {_PREFIX + "tokens": tokens, _PREFIX + "token_type": [int(kind) for kind in kinds]}


def _is_byte(token: str, described: dict[str, Any]) -> bool:
    return bool(described["model"].get("byte_fallback") and _BYTE_TOKEN.fullmatch(token))


def _special_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """Their ids, and whether a text begins with BOS and ends with EOS."""
    own = tokenizer.pretrained
    ids = {name: getattr(own, attribute, None) for name, attribute in _SPECIAL.items()}
    found: dict[str, Any] = {f"{_PREFIX}{name}_token_id": index for name, index in ids.items() if index is not None}
    plain, whole = own.encode("a", add_special_tokens=False), tokenizer.encode("a")
    at = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
    around = {"bos": whole[:at], "eos": whole[at + len(plain) :]}
    for name, added in around.items():
        if added not in ([], [ids[name]]):
            raise CheckpointError(f"the tokenizer: expected {name} or nothing around a text, got the ids {added!r:.80}")
        found[f"{_PREFIX}add_{name}_token"] = bool(added)
    return found


def _named_ends(names: Sequence[str], ends: Sequence[int]) -> dict[str, Any]:
    if len(ends) > len(names):
        raise CheckpointError(
            f"eos_token_id: expected at most {len(names)} more than eos names, got {list(ends)!r:.80}"
        )
    return {f"{_PREFIX}{name}_token_id": index for name, index in zip(names, ends, strict=False)}


def _byte_pairs(backend: Backend, model: dict[str, Any], common: dict[str, Any]) -> list[dict[str, Any]]:
    """With each pre-tokenizer of llama.cpp that cuts as this one does, once for all names that mean the same."""
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    names: dict[Any, str] = {}
    for name, row in PRE_TOKENIZERS.items():
        if row.byte_level and row.ignore_merges == bool(model.get("ignore_merges")):
            names.setdefault(row, name)
    wanted = _pieces(backend)
    metadata = {_PREFIX + "model": "gpt2", **common} | ({_PREFIX + "merges": merges} if merges else {})
    return [metadata | {_PREFIX + "pre": name} for name in names.values() if _pieces_of(name) == wanted]


def _pieces_of(pre: str) -> list[list[str]]:
    """What the pre-tokenizer of a name cuts texts into: that of a vocabulary without any word."""
    tiny = {"model": "gpt2", "pre": pre, "tokens": ["a"], "merges": [], "add_bos_token": False}
    found = load_gguf_tokenizer({_PREFIX + key: value for key, value in tiny.items()})
    assert found is not None
    return _pieces(found.pretrained.backend_tokenizer)


def _pieces(backend: Backend) -> list[list[str]]:
    def cut(text: str) -> list[str]:
        normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        cutter = backend.pre_tokenizer
        return [normal] if cutter is None else [piece for piece, _ in cutter.pre_tokenize_str(normal)]

    return [cut(text) for text in _TEXTS]


def _sentence_pieces(model: dict[str, Any], common: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """With and without a space before every text; a token scores by the place of the first merge that makes it."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge if not isinstance(merge, str) else merge.split(" ")), rank)
    scores = [-float(ranks.get(token, 0)) for token in common[_PREFIX + "tokens"]]
    metadata = {_PREFIX + "model": "llama", _PREFIX + "pre": "default", **common, _PREFIX + "scores": scores}
    return [metadata | {_PREFIX + "add_space_prefix": prefix} for prefix in (True, False)]
