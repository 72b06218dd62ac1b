"""llama.cpp's architectures, as data: what the tensors and the metadata of a GGUF file are called by Hugging Face.

The names of tensors are those of the ``gguf`` package (``TensorNameMap``). What the converter changes on the way, and
what llama.cpp knows of an architecture where the file does not say it, is that of llama.cpp (``convert_hf_to_gguf.py``,
``src/llama-model.cpp``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        model_type: of Hugging Face.
        model: the names of the tensors outside the layers, without ``.weight`` and ``.bias``.
        layer: what the name of a tensor in a layer begins with, before the number.
        parts: the names in a layer.
        keys: metadata to config, beside those that all have.
        rotary_pairs: whether the rows of q and k are stored in the order of interleaved rotary pairs.
        groups: from the config to the number of groups into which Hugging Face divides the rows of q, k and v in a
            merged tensor, which llama.cpp stores as all queries, all keys and all values; None where they agree.
        norm_offset: whether the weights of norms are stored plus 1.
        derive: from the config and the names of the tensors to what else the config holds.
        old_names: of tensors outside the layers, to the names that ``model`` has for them.
    """

    model_type: str
    model: Mapping[str, str]
    layer: str
    parts: Mapping[str, str]
    keys: Mapping[str, str] = field(default_factory=dict)
    rotary_pairs: bool = False
    groups: Callable[[Config], Any] | None = None
    norm_offset: bool = False
    derive: Callable[[Config, Collection[str]], Config] = lambda config, tensors: {}
    old_names: Mapping[str, str] = field(default_factory=dict)


_RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_PARALLEL = {"use_parallel_residual": "use_parallel_residual"}
_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"} | {"attn_output": "self_attn.o_proj"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_MERGED_MLP = {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}
_FOUR_H = {"ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h"}
_QKV = {"attn_qkv": "query_key_value", "attn_output": "dense"}
_GEMMA_PARTS = {
    **_ATTENTION,
    **_MLP,
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def _below(name: str, names: Mapping[str, str]) -> dict[str, str]:
    return {stored: f"{name}.{part}" for stored, part in names.items()}


def _llama(model_type: str, **other: Any) -> Architecture:
    """What has Llama's names."""
    parts = _NORMS | _ATTENTION | _HEAD_NORMS | _MLP
    values = {"model": _MODEL, "layer": "model.layers", "parts": parts, "keys": _RMS}
    return Architecture(model_type, **(values | other))


def _biases(config: Config, tensors: Collection[str]) -> Config:
    return {
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in tensors,
        "attention_output_bias": "model.layers.0.self_attn.o_proj.bias" in tensors,
        "mlp_bias": "model.layers.0.mlp.down_proj.bias" in tensors,
    }


def _gemma(largest: int) -> Callable[[Config, Collection[str]], Config]:
    """The scale of the logits, which llama.cpp knows: of the largest model, by its layers, it is another one."""

    def derive(config: Config, tensors: Collection[str]) -> Config:
        hidden, heads, layers = (config[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
        wide = layers == largest and type(hidden) is int and type(heads) is int and heads > 0
        return {"query_pre_attn_scalar": hidden // heads if wide else config["head_dim"]}

    return derive


def _falcon(config: Config, tensors: Collection[str]) -> Config:
    grouped = "transformer.h.0.ln_attn.weight" in tensors
    kv_heads = config["num_key_value_heads"] or config["num_attention_heads"]
    return {
        "num_key_value_heads": kv_heads,
        "num_kv_heads": kv_heads,
        "ffn_hidden_size": config["intermediate_size"],
        "new_decoder_architecture": grouped,
        "multi_query": not grouped and kv_heads == 1,
    }


def _mpt(config: Config, tensors: Collection[str]) -> Config:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    numbers = type(hidden) is int and type(inner) is int and hidden > 0
    heads = {"alibi": True, "clip_qkv": config["clip_qkv"] or None, "alibi_bias_max": config["alibi_bias_max"]}
    return {
        "d_model": hidden,
        "n_heads": config["num_attention_heads"],
        "n_layers": config["num_hidden_layers"],
        "max_seq_len": config["max_position_embeddings"],
        "expansion_ratio": inner / hidden if numbers else None,
        "attn_config": {key: value for key, value in heads.items() if value is not None},
    }


def _chatglm(config: Config, tensors: Collection[str]) -> Config:
    theta = config["rope_theta"]
    names = {
        "padded_vocab_size": "vocab_size",
        "num_layers": "num_hidden_layers",
        "ffn_hidden_size": "intermediate_size",
        "seq_length": "max_position_embeddings",
        "kv_channels": "head_dim",
        "multi_query_group_num": "num_key_value_heads",
    }
    return {
        **{new: config[old] for new, old in names.items()},
        "multi_query_attention": True,
        "add_bias_linear": False,
        "add_qkv_bias": "transformer.encoder.layers.0.self_attention.query_key_value.bias" in tensors,
        "rope_ratio": theta / 10000 if type(theta) in (int, float) else 1.0,
    }


ARCHITECTURES = {
    "llama": _llama("llama", rotary_pairs=True, derive=_biases),
    "mistral": _llama("mistral", rotary_pairs=True),
    "qwen2": _llama("qwen2"),
    "qwen3": _llama("qwen3", derive=_biases),
    "granite": _llama(
        "granite",
        rotary_pairs=True,
        keys=_RMS
        | {
            "logit_scale": "logits_scaling",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "attention.scale": "attention_multiplier",
        },
        derive=_biases,
    ),
    "smollm3": _llama("smollm3", rotary_pairs=True, derive=_biases),
    "olmo2": _llama(
        "olmo2",
        parts=_ATTENTION
        | _HEAD_NORMS
        | _MLP
        | {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"},
    ),
    "phi3": _llama(
        "phi3", parts=_NORMS | _MERGED_MLP | {"attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj"}
    ),
    "stablelm": _llama(
        "stablelm",
        parts=_NORMS | _ATTENTION | _MLP,
        keys=_PARALLEL | {"attention.layer_norm_epsilon": "layer_norm_eps"},
        derive=lambda config, tensors: {"use_qkv_bias": _biases(config, tensors)["attention_bias"]},
    ),
    "starcoder2": _llama(
        "starcoder2",
        parts=_NORMS | _ATTENTION | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        keys={"attention.layer_norm_epsilon": "norm_epsilon"},
        derive=lambda config, tensors: {"use_bias": _biases(config, tensors)["attention_bias"]},
    ),
    "gemma2": _llama(
        "gemma2",
        parts=_GEMMA_PARTS,
        keys=_RMS
        | {
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        norm_offset=True,
        derive=_gemma(largest=46),
    ),
    "gemma3": _llama(
        "gemma3_text",
        parts=_GEMMA_PARTS | _HEAD_NORMS,
        keys=_RMS | {"rope.freq_base_swa": "rope_local_base_freq"},
        norm_offset=True,
        derive=_gemma(largest=62),
    ),
    "glm4": _llama(
        "glm4",
        parts=_NORMS
        | _ATTENTION
        | _MERGED_MLP
        | {"post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"},
        derive=_biases,
    ),
    "chatglm": Architecture(
        "chatglm",
        {
            "token_embd": "transformer.embedding.word_embeddings",
            "output_norm": "transformer.encoder.final_layernorm",
            "output": "transformer.output_layer",
        },
        "transformer.encoder.layers",
        _NORMS | _below("self_attention", _QKV) | _FOUR_H,
        {"attention.layer_norm_rms_epsilon": "layernorm_epsilon"},
        derive=_chatglm,
    ),
    "gptneox": Architecture(
        "gpt_neox",
        {"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "lm_head"},
        "gpt_neox.layers",
        _NORMS | _below("attention", _QKV) | _FOUR_H,
        _PARALLEL | {"attention.layer_norm_epsilon": "layer_norm_eps"},
        groups=lambda config: config["num_attention_heads"],
        derive=lambda config, tensors: {
            "attention_bias": "gpt_neox.layers.0.attention.query_key_value.bias" in tensors
        },
        old_names={"embed_out": "lm_head"},
    ),
    "bloom": Architecture(
        "bloom",
        {
            "token_embd": "transformer.word_embeddings",
            "token_embd_norm": "transformer.word_embeddings_layernorm",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        "transformer.h",
        _NORMS | _below("self_attention", _QKV) | _FOUR_H,
        {"attention.layer_norm_epsilon": "layer_norm_epsilon", "context_length": "seq_length"},
        groups=lambda config: config["num_attention_heads"],
    ),
    "falcon": Architecture(
        "falcon",
        {"token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f", "output": "lm_head"},
        "transformer.h",
        {"attn_norm": "input_layernorm"} | _below("self_attention", _QKV) | _FOUR_H,
        {"attention.layer_norm_epsilon": "layer_norm_epsilon"},
        groups=lambda config: config["num_key_value_heads"],
        derive=_falcon,
    ),
    "mpt": Architecture(
        "mpt",
        {"token_embd": "transformer.wte", "output_norm": "transformer.norm_f", "output": "lm_head"},
        "transformer.blocks",
        {
            "attn_norm": "norm_1",
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.out_proj",
            "ffn_norm": "norm_2",
            "ffn_up": "ffn.up_proj",
            "ffn_down": "ffn.down_proj",
        },
        {
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
            "attention.clamp_kqv": "clip_qkv",
            "attention.max_alibi_bias": "alibi_bias_max",
        },
        derive=_mpt,
    ),
}
# Where the converter makes one architecture of two: the name, a tensor that only the second one has, and the second.
_SECOND = (
    ("chatglm", "blk.0.attn_q.weight", _llama("glm", parts=_NORMS | _ATTENTION | _MERGED_MLP, derive=_biases)),
    (
        "falcon",
        "blk.0.attn_norm_2.weight",
        replace(
            ARCHITECTURES["falcon"],
            parts={"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"} | _below("self_attention", _QKV) | _FOUR_H,
        ),
    ),
)


# What llama.cpp has no architecture of its own for.
_WRITTEN_AS = {"mistral": "llama"}


def architectures_for(model_type: object) -> list[tuple[str, Architecture]]:
    """What a model of Hugging Face's type may be written as, by ``general.architecture``: none, one or two."""
    if isinstance(model_type, str) and (name := _WRITTEN_AS.get(model_type)) is not None:
        return [(name, ARCHITECTURES[name])]
    known = [*ARCHITECTURES.items(), *((first, second) for first, _, second in _SECOND)]
    return [(name, of) for name, of in known if of.model_type == model_type]


def architecture_of(name: object, tensors: Collection[str]) -> Architecture:
    """The architecture of a file.

    Args:
        name: ``general.architecture``.
        tensors: the names of the file.

    Returns:
        one with Llama's names where the name is unknown: the families say so.
    """
    for first, tensor, second in _SECOND:
        if name == first and tensor in tensors:
            return second
    if isinstance(name, str) and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    return replace(ARCHITECTURES["llama"], model_type=name)  # type: ignore[arg-type]
