"""Files of the families as they are published: names, prefixes, ``.bin`` shards, configs of the real models."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fdpp.engine.layers import Embedding, Linear, Positions
from fdpp.errors import CheckpointError
from fdpp.llm import LLM
from fdpp.models import family_of
from tests.engine.helpers import assert_logits_close, forced_logits, reference_logits
from tests.engine.models import VARIANTS, VOCAB, tiny_model
from tests.engine.test_hostile_files import VALUES

IDS = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(3)).tolist()


def assert_loads(path, model) -> None:
    (logits,) = forced_logits(LLM(path, dtype="float32"), [IDS], [25], None)
    assert_logits_close(logits, reference_logits(model, IDS)[24:])


# ChatGLM2's published layout, from GLM's weights: the same layers under other names, with merged projections.


_CHATGLM_NAMES = {
    "model.layers.": "transformer.encoder.layers.",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.gate_up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}


def chatglm_checkpoint(path, glm) -> None:
    c, tensors = glm.config, {}
    for name, value in glm.state_dict().items():
        name = name.replace("model.layers.", "transformer.encoder.layers.").replace(
            "self_attn.o_proj", "self_attention.dense"
        )
        name = name.replace("mlp.gate_up_proj", "mlp.dense_h_to_4h").replace("mlp.down_proj", "mlp.dense_4h_to_h")
        tensors[name] = value
    tensors["transformer.embedding.word_embeddings.weight"] = tensors.pop("model.embed_tokens.weight")
    tensors["transformer.encoder.final_layernorm.weight"] = tensors.pop("model.norm.weight")
    tensors["transformer.output_layer.weight"] = tensors.pop("lm_head.weight")
    tensors["transformer.rotary_pos_emb.inv_freq"] = torch.ones(c.head_dim // 4)
    for layer in range(c.num_hidden_layers):
        where = f"transformer.encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"{where}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            tensors[f"{where}.self_attention.query_key_value.{kind}"] = torch.cat(parts)
    config = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_residual_connection_post_layernorm": False,
        "ffn_hidden_size": c.intermediate_size,
        "hidden_size": c.hidden_size,
        "kv_channels": c.head_dim,
        "layernorm_epsilon": c.rms_norm_eps,
        "multi_query_attention": True,
        "multi_query_group_num": c.num_key_value_heads,
        "num_attention_heads": c.num_attention_heads,
        "num_layers": c.num_hidden_layers,
        "original_rope": True,
        "padded_vocab_size": c.vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": c.max_position_embeddings,
        "tie_word_embeddings": False,
    }
    (path / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, held in shards.items():
        torch.save({name: tensors[name].clone() for name in held}, path / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_chatglm2_as_published(tmp_path):
    glm = tiny_model("glm")
    chatglm_checkpoint(tmp_path, glm)
    assert_loads(tmp_path, glm)


# .bin files


@pytest.mark.parametrize("is_archive", [True, False])
def test_a_bin_file(tmp_path, is_archive):
    model = tiny_model("opt")
    model.config.save_pretrained(tmp_path)
    tensors = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=is_archive)
    assert_loads(tmp_path, model)


class _Code:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 damaged",
        pickle.dumps({"model.norm.weight": _Code()}),
        pickle.dumps([1, 2, 3]),
        pickle.dumps({"model.norm.weight": "text"}),
    ],
)
def test_bad_bin_files_are_refused_in_a_line(tmp_path, content, capsys):
    tiny_model("llama").config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        LLM(tmp_path)
    assert "\n" not in str(raised.value) and "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("value", [torch.ones(4, dtype=torch.int8), torch.ones(4).to_sparse(), [1.0], torch.ones(3)])
def test_bad_tensors_in_a_bin_file(tmp_path, value):
    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict() | {"model.norm.weight": value}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight: expected"):
        LLM(tmp_path)


# Names


@pytest.mark.parametrize("variant", ["opt", "gpt-neox", "bloom", "falcon", "mpt", "gemma2"])
def test_decoders_without_their_prefix(checkpoints, tmp_path, variant):
    """What AutoModel saves, and what the hub holds of OPT and BLOOM."""
    path, model = checkpoints(variant)
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    tensors = load_file(path / "model.safetensors")
    prefix = f"{model.base_model_prefix}."
    assert any(name.startswith(prefix) for name in tensors)
    save_file({name.removeprefix(prefix): value for name, value in tensors.items()}, tmp_path / "model.safetensors")
    assert_loads(tmp_path, model)


def test_gpt_neox_with_the_name_of_its_head_in_the_files(checkpoints, tmp_path):
    path, model = checkpoints("gpt-neox")
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    tensors = load_file(path / "model.safetensors")
    tensors["embed_out.weight"] = tensors.pop("lm_head.weight", tensors.get("embed_out.weight"))
    save_file(tensors, tmp_path / "model.safetensors")
    assert_loads(tmp_path, model)


def test_the_model_of_text_of_a_gemma_that_sees(tmp_path):
    text = tiny_model("gemma3").config
    vision = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
    }
    config = transformers.Gemma3Config(
        text_config=text.to_dict(),
        vision_config=vision | {"patch_size": 14},
        mm_tokens_per_image=4,
        eos_token_id=[2, 7],
    )
    torch.manual_seed(1)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    llm = LLM(tmp_path, dtype="float32")
    (logits,) = forced_logits(llm, [IDS], [25], None)
    assert_logits_close(logits, reference_logits(model, IDS)[24:])
    assert llm.eos_token_ids >= {2, 7}


# What is computed from the declarations


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_and_bytes(checkpoints, variant):
    """Every matrix but the embeddings is one that a step multiplies with; a step reads all but embeddings."""
    path, model = checkpoints(variant)
    ours = LLM(path, dtype="float32").model
    parameters = dict(model.named_parameters())
    embeddings = [ours.embedding.weight] + [part.weight for part in ours.walk(Positions)]
    looked_up = {source.name for weight in embeddings for source in weight.sources}
    head = ours.head.linear.weight
    tied = head is ours.embedding.weight
    matrices = sum(p.numel() for name, p in parameters.items() if p.ndim == 2 and name not in looked_up)
    assert sum(math.prod(part.weight.shape) for part in ours.walk(Linear)) == matrices + tied * math.prod(head.shape)
    assert {tuple(part.weight.shape) for part in ours.walk(Linear)} == ours.linear_shapes()
    read = sum(p.numel() for name, p in parameters.items() if name not in looked_up or (tied and name in _names(head)))
    norms = ours.embedding.norm  # of one token's row, which is not counted
    read -= 0 if norms is None else sum(math.prod(w.shape) for w in (norms.weight, norms.bias))
    projection = ours.embedding.projection
    read -= 0 if projection is None else math.prod(projection.weight.shape)
    assert ours.step_bytes(0) == 4 * read
    config, context = model.config, 100
    cached = 0
    for attention in ours.attentions:
        seen = context if attention.window < 0 else min(context, attention.window + 1)
        cached += 2 * 4 * seen * attention.num_kv_heads * attention.head_dim
    assert ours.step_bytes(context, batch=3) == 4 * read + 3 * cached
    assert len(ours.attentions) == config.num_hidden_layers and ours.vocab_size == VOCAB
    assert isinstance(ours.embedding, Embedding)


def _names(weight) -> set[str]:
    return {source.name for source in weight.sources}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_value_of_every_key_of_every_family(checkpoints, variant):
    """A model is declared, or the config is refused; nothing else is raised, and nothing is allocated."""
    path, _ = checkpoints(variant)
    config = json.loads((path / "config.json").read_text())
    nested = {key: value for key, value in config.items() if isinstance(value, dict)}
    for key in config:
        for value in VALUES:
            with contextlib.suppress(CheckpointError):
                family_of(config | {key: value}).build(config | {key: value}, ())
    for key, inner in nested.items():
        for name in inner:
            for value in VALUES:
                changed = config | {key: inner | {name: value}}
                with contextlib.suppress(CheckpointError):
                    family_of(changed).build(changed, ())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mixtral"}, "'mixtral'; the nearest is mistral, which lacks mixtures of experts; known are"),
        ({"architectures": ["GPT2LMHeadModel"]}, "the nearest is gpt_neox, which lacks learned positions"),
        ({"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe"}, "the nearest is qwen2"),
        ({"model_type": "gemma33"}, "the nearest name is gemma"),
        ({"model_type": "zzz"}, "unknown architecture 'zzz'; known are"),
    ],
)
def test_an_unknown_architecture_names_the_nearest(config, message):
    with pytest.raises(CheckpointError, match=message):
        family_of(config)
