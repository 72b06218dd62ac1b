"""ChatGLM2's and ChatGLM3's tokenizer: SentencePiece with tokens of its own behind the vocabulary.

Every text begins with ``[gMASK] sop``. The files bring the tokenizer as Python code, which is never run; this is what
it does. Source: https://huggingface.co/THUDM/chatglm2-6b (``tokenization_chatglm.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdpp.errors import CheckpointError
from fdpp.tokenizers.gguf import wrap_sentence_piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PREFIX = ("[gMASK]", "sop")
_SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")  # of ChatGLM3
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # kinds of pieces, as numbered by SentencePiece and by llama.cpp
_ROUNDS = (
    "[gMASK]sop{% set ns = namespace(round=0) %}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% set ns.round = ns.round + 1 %}[Round {{ ns.round }}]\n\n问：{{ message['content'] }}\n\n答："
    "{% else %}{{ message['content'] }}\n\n{% endif %}{% endfor %}"
)
_TURNS = (
    "[gMASK]sop{% for message in messages %}<|{{ message['role'] }}|>\n {{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def load_chatglm(path: Path, config: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer of ``tokenizer.model``.

    Args:
        path: of that file.
        config: the content of ``tokenizer_config.json``.

    Raises:
        CheckpointError: the file is no SentencePiece model. May raise anything else where it is damaged.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import processors

    pieces = SentencePieceProcessor(model_file=str(path))
    count = pieces.get_piece_size()
    has_roles = any(role in str(config.get("added_tokens_decoder", "")) for role in _ROLES)
    special = [*_SPECIAL, *(_ROLES if has_roles else ())]
    kinds = [
        _CONTROL
        if pieces.is_control(index)
        else _UNKNOWN
        if pieces.is_unknown(index)
        else _BYTE
        if pieces.is_byte(index)
        else _NORMAL
        for index in range(count)
    ]
    template = config.get("chat_template") or (_TURNS if has_roles else _ROUNDS)
    if not isinstance(template, str):
        raise CheckpointError(f"{path.parent}: chat_template: expected a string, got {template!r:.80}")
    ids = {"bos": pieces.bos_id(), "eos": pieces.eos_id(), "unknown": pieces.unk_id()}
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*(pieces.id_to_piece(index) for index in range(count)), *special],
        "tokenizer.ggml.scores": [*(pieces.get_score(index) for index in range(count)), *[0.0] * len(special)],
        "tokenizer.ggml.token_type": [*kinds, *[_CONTROL] * len(special)],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": template,
        **{f"tokenizer.ggml.{name}_token_id": index for name, index in ids.items() if index >= 0},
    }
    tokenizer = wrap_sentence_piece(metadata)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*_PREFIX, "$A"], special_tokens=[(token, count + special.index(token)) for token in _PREFIX]
    )
    return tokenizer
