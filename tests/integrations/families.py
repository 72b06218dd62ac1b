"""Tiny random models of transformers: the families that fdpp.LLM knows, and more whose attention can be chosen."""

from __future__ import annotations

import torch
import transformers

from tests.engine.models import VARIANTS, VOCAB, tiny_model

_SIZES = {
    "vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_HEADS = _SIZES | {"head_dim": 64}
_HIDDEN = _SIZES | {"hidden_size": 256}  # heads of 64 where the family derives their size
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32}
_WINDOW = {"sliding_window": 9}
_GPT = {
    "vocab_size": VOCAB, "n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

# name: (class of the config, what it is given)
MORE = {
    "apertus": ("ApertusConfig", _HIDDEN),
    "arcee": ("ArceeConfig", _HEADS),
    "biogpt": ("BioGptConfig", _HIDDEN),
    "cohere": ("CohereConfig", _HIDDEN),
    "cohere2": ("Cohere2Config", _HEADS | _WINDOW | {"num_hidden_layers": 4}),
    "ctrl": ("CTRLConfig", _GPT | {"dff": 192}),
    "deepseek-v3": (
        "DeepseekV3Config",
        _SIZES | _LATENT | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 64, "first_k_dense_replace": 1, "num_key_value_heads": 4},
    ),
    "diffllama": ("DiffLlamaConfig", _HIDDEN),
    "doge": ("DogeConfig", _HEADS),
    "ernie-4.5": ("Ernie4_5Config", _HEADS),
    "exaone4": ("Exaone4Config", _HIDDEN | _WINDOW),
    "gemma": ("GemmaConfig", _HEADS),
    "gpt2": ("GPT2Config", _GPT),
    "gpt-bigcode": ("GPTBigCodeConfig", _GPT),
    "gpt-oss": ("GptOssConfig", _HEADS | _WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "granite-swa": ("GraniteSWAConfig", _HIDDEN | _WINDOW),
    "helium": ("HeliumConfig", _HIDDEN | {"head_dim": 64}),
    "llama4": ("Llama4TextConfig", _HEADS | {"num_local_experts": 2, "attention_chunk_size": 9}),
    "mixtral": ("MixtralConfig", _HEADS | {"num_local_experts": 4} | _WINDOW),
    "narrow-heads": ("LlamaConfig", _HEADS | {"head_dim": 24}),
    "olmo": ("OlmoConfig", _HIDDEN),
    "olmo3": ("Olmo3Config", _HIDDEN | _WINDOW),
    "qwen2-moe": ("Qwen2MoeConfig", _HIDDEN | _MIXTURE),
    "qwen3-moe": ("Qwen3MoeConfig", _HEADS | _MIXTURE),
    "seed-oss": ("SeedOssConfig", _HEADS),
}  # fmt: skip
_KNOWN = (
    "llama", "llama-tied", "llama-biased", "mistral-window", "mistral-full", "qwen2", "qwen2-window", "qwen3",
    "qwen3-wide", "opt", "gpt-neox", "bloom", "mpt", "falcon", "starcoder2", "stablelm", "phi3", "gemma2", "gemma3",
    "granite", "olmo2", "smollm3", "ministral", "glm", "glm4",
)  # fmt: skip
FAMILIES = (*_KNOWN, *MORE)


def eager_model(family: str) -> transformers.PreTrainedModel:
    """A float32 model with random weights, norms and sinks included, whose attention is eager."""
    if family in VARIANTS:
        model = tiny_model(family)
    else:
        name, settings = MORE[family]
        torch.manual_seed(sum(map(ord, family)))
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
    if model._can_set_attn_implementation():
        model.set_attn_implementation("eager")
    return model


def tokens(rows: int, count: int, seed: int = 0) -> torch.Tensor:
    """int64 ``[rows, count]``, none of them special."""
    return torch.randint(3, VOCAB, (rows, count), generator=torch.Generator().manual_seed(seed))


def logits(model: torch.nn.Module, prompt: torch.Tensor, cache: object, mask: torch.Tensor | None = None):
    """Of the prompt's last token and of steps of 1, 1, 3 and 1 tokens: ``[B, 7, V]``."""
    found = [model(prompt, attention_mask=mask, past_key_values=cache, use_cache=True).logits[:, -1:]]
    for number, count in enumerate((1, 1, 3, 1)):
        new = tokens(len(prompt), count, seed=1 + number)
        if mask is not None:
            mask = torch.cat((mask, torch.ones_like(new)), dim=1)
        found.append(model(new, attention_mask=mask, past_key_values=cache, use_cache=True).logits)
    return torch.cat(found, dim=1)


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest of what is expected."""
    return ((got - expected).abs().max() / expected.abs().max()).item()
