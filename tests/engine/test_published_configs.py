"""The config.json of published models, as far as it decides shapes: they are read into models of the right size."""

from __future__ import annotations

import math

import pytest

from fdpp.models import family_of


def _llama(hidden, inner, layers, heads, kv_heads, vocab, **more):
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        **more,
    }


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
#: The configs of published models: what decides their shapes, the number of parameters, head_dim.
PUBLISHED = {
    "Llama-2-7B": ("llama", _llama(4096, 11008, 32, 32, 32, 32000), 6_738_415_616, 128),
    "Llama-2-13B": ("llama", _llama(5120, 13824, 40, 40, 40, 32000), 13_015_864_320, 128),
    "Llama-3.1-8B": (
        "llama",
        _llama(4096, 14336, 32, 32, 8, 128256, rope_scaling=_LLAMA3, rope_theta=5e5),
        8_030_261_248,
        128,
    ),
    "OPT-6.7B": (
        "opt",
        {
            "hidden_size": 4096,
            "ffn_dim": 16384,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 50272,
            "max_position_embeddings": 2048,
            "word_embed_proj_dim": 4096,
            "do_layer_norm_before": True,
            "activation_function": "relu",
        },
        6_658_473_984,
        128,
    ),
    "ChatGLM2-6B": (
        "chatglm",
        {
            "hidden_size": 4096,
            "ffn_hidden_size": 13696,
            "num_layers": 28,
            "num_attention_heads": 32,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "kv_channels": 128,
            "padded_vocab_size": 65024,
            "seq_length": 32768,
            "add_qkv_bias": True,
            "add_bias_linear": False,
            "layernorm_epsilon": 1e-5,
        },
        6_243_584_000,
        128,
    ),
    "Mistral-7B": ("mistral", _llama(4096, 14336, 32, 32, 8, 32000, sliding_window=4096), 7_241_732_096, 128),
    "Qwen3-8B": ("qwen3", _llama(4096, 12288, 36, 32, 8, 151936, head_dim=128), 8_190_735_360, 128),
    "Gemma-2-9B": (
        "gemma2",
        _llama(3584, 14336, 42, 16, 8, 256000, head_dim=256, sliding_window=4096, query_pre_attn_scalar=256),
        9_241_705_984,
        256,
    ),
    "Gemma-3-4B": (
        "gemma3_text",
        {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        3_880_263_168,
        256,
    ),
    "Phi-3-mini": ("phi3", _llama(3072, 8192, 32, 32, 32, 32064, sliding_window=2047), 3_821_079_552, 96),
    "Phi-4-mini": (
        "phi3",
        _llama(
            3072,
            8192,
            32,
            24,
            8,
            200064,
            tie_word_embeddings=True,
            partial_rotary_factor=0.75,
            rope_scaling=_LONGROPE,
            original_max_position_embeddings=4096,
        )
        | {"max_position_embeddings": 131072},
        3_836_021_760,
        128,
    ),
    "GLM-4-9B": ("glm", _llama(4096, 13696, 40, 32, 2, 151552, head_dim=128, attention_bias=True), 9_399_951_360, 128),
    "Granite-3.3-8B": (
        "granite",
        _llama(
            4096,
            12800,
            40,
            32,
            8,
            49159,
            tie_word_embeddings=True,
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.0078125,
            logits_scaling=16.0,
        ),
        8_170_864_640,
        128,
    ),
    "OLMo-2-7B": ("olmo2", _llama(4096, 11008, 32, 32, 32, 100352), 7_298_617_344, 128),
    "SmolLM3-3B": ("smollm3", _llama(2048, 11008, 36, 16, 4, 128256, tie_word_embeddings=True), 3_075_098_624, 128),
    "StarCoder2-7B": (
        "starcoder2",
        _llama(4608, 18432, 32, 36, 4, 49152, sliding_window=4096, tie_word_embeddings=False),
        7_400_416_256,
        128,
    ),
    "StableLM-2-1.6B": ("stablelm", _llama(2048, 5632, 24, 32, 32, 100352, use_qkv_bias=True), 1_644_515_328, 64),
    "Pythia-6.9B": ("gpt_neox", _llama(4096, 16384, 32, 32, 32, 50432, rotary_pct=0.25), 6_857_302_016, 128),
    "BLOOM-7B1": ("bloom", {"n_embed": 4096, "n_layer": 30, "n_head": 32, "vocab_size": 250880}, 7_069_016_064, 128),
    "MPT-7B": (
        "mpt",
        {
            "d_model": 4096,
            "n_layers": 32,
            "n_heads": 32,
            "vocab_size": 50432,
            "max_seq_len": 2048,
            "expansion_ratio": 4,
        },
        6_649_286_656,
        128,
    ),
    "Falcon-7B": (
        "falcon",
        {
            "hidden_size": 4544,
            "num_hidden_layers": 32,
            "num_attention_heads": 71,
            "vocab_size": 65024,
            "multi_query": True,
            "parallel_attn": True,
            "alibi": False,
            "bias": False,
        },
        6_921_720_704,
        64,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name):
    model_type, config, parameters, head_dim = PUBLISHED[name]
    config = {"model_type": model_type} | config
    model = family_of(config).build(config, ())
    assert {attention.head_dim for attention in model.attentions} == {head_dim}
    assert sum(math.prod(weight.shape) for weight in model.weights()) == parameters
