"""GGUF files of every storage type and family, written with the gguf package, against transformers."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
import torch

from fdpp.checkpoints.gguf_architectures import ARCHITECTURES
from fdpp.checkpoints.gguf_names import hugging_face_config
from fdpp.errors import CheckpointError
from fdpp.llm import LLM
from fdpp.models.config import read_config
from fdpp.rope_config import LongRopeScaling, YarnScaling
from tests.engine.gguf_writer import write_gguf
from tests.engine.helpers import assert_logits_close, forced_logits, reference_logits
from tests.engine.models import VOCAB, tiny_model

LLAMA = ARCHITECTURES["llama"]
Kind = gguf.GGMLQuantizationType
IDS = torch.randint(3, VOCAB, (50,), generator=torch.Generator().manual_seed(7)).tolist()


def check(path, model):
    (logits,) = forced_logits(LLM(path, dtype="float32", weights="dequantised"), [IDS], [30], None)
    assert_logits_close(logits, reference_logits(model, IDS)[29:])


@pytest.mark.parametrize(
    "variant",
    [
        "llama",
        "llama-tied",
        "llama3-rope",
        "linear-rope",
        "yarn-rope",
        "llama-biased",
        "mistral-full",
        "qwen2",
        "qwen3",
        "gpt-neox",
        "gpt-neox-serial",
        "bloom",
        "bloom-six-heads",
        "mpt",
        "falcon",
        "falcon-groups",
        "starcoder2",
        "stablelm",
        "stablelm-parallel",
        "phi3",
        "phi4-mini",
        "granite",
        "olmo2",
        "glm",
        "glm4",
        "gemma2-llama.cpp",
        "gemma3-llama.cpp",
        "smollm3-llama.cpp",
    ],
)
def test_families(tmp_path, variant):
    model = tiny_model(variant)
    write_gguf(tmp_path / "model.gguf", model)
    check(tmp_path / "model.gguf", model)


@pytest.mark.parametrize("length", [50, 70])
def test_longrope(checkpoints, tmp_path, length):
    """An answer across the original context, and one beyond it; the factors are tensors of the file."""
    path, model = checkpoints("longrope")
    write_gguf(tmp_path / "model.gguf", model)
    answers = [
        LLM(where, dtype="float32").generate([(IDS * 2)[:length]], max_new_tokens=30, ignore_eos=True)
        for where in (path, tmp_path / "model.gguf")
    ]
    assert answers[0][0].token_ids == answers[1][0].token_ids


BASE = {
    "general.architecture": "llama",
    "llama.context_length": 256,
    "llama.block_count": 1,
    "llama.embedding_length": 128,
    "llama.feed_forward_length": 192,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 300,
}
TYPE, FACTOR, OLD_FACTOR = "scaling.type", "scaling.factor", "scale_linear"


def rope_of(factors: dict | None = None, **keys):
    metadata = BASE | {f"llama.rope.{key}": value for key, value in keys.items()}
    return read_config(hugging_face_config(metadata, LLAMA, (), factors)).rope


@pytest.mark.parametrize("kind", [None, "none", "linear", "yarn"])
@pytest.mark.parametrize("new", [None, 0.0, 4.0])
@pytest.mark.parametrize("old", [None, 0.0, 8.0])
def test_rope_factor_under_both_names(kind, new, old):
    """As llama.cpp: linear without a type; the old key where the new one is absent; 0 scales nothing."""
    keys = {TYPE: kind, FACTOR: new, OLD_FACTOR: old}
    rope = rope_of(**{key: value for key, value in keys.items() if value is not None})
    factor = (old if new is None else new) or 1.0
    if kind == "yarn":
        assert rope.scaling.factor == factor and rope.linear_factor == 1.0
    else:
        assert rope.linear_factor == (1.0 if kind == "none" else factor) and rope.scaling is None


def test_factors_alone_mean_longrope():
    """As Phi-3's converter writes them."""
    factors = {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
    scaling = rope_of(factors, **{"scaling.original_context_length": 64}).scaling
    assert scaling == LongRopeScaling((1.0,) * 32, (2.0,) * 32, 64)


def test_yarn_keys():
    yarn = {TYPE: "yarn", FACTOR: 4.0, "scaling.original_context_length": 64}
    assert rope_of(**yarn).scaling == YarnScaling(4.0, 64, 32, 1, True)
    assert rope_of(**yarn).attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert rope_of(**yarn, **{"scaling.attn_factor": 0.5}).attention_factor == pytest.approx(0.05 * math.log(4) + 0.5)
    assert rope_of(**yarn, **{"scaling.yarn_log_multiplier": 1.0}).attention_factor == pytest.approx(1.0)
    bounds = {"scaling.yarn_beta_fast": 24.0, "scaling.yarn_beta_slow": 2.0}
    assert rope_of(**yarn, **bounds).scaling == YarnScaling(4.0, 64, 24.0, 2.0, True)
    assert rope_of(**{TYPE: "yarn", FACTOR: 4.0}).scaling.original_max_positions == 256


@pytest.mark.parametrize(
    ("keys", "factors", "message"),
    [
        ({TYPE: "dynamic"}, None, "rope.scaling.type"),
        ({TYPE: ["yarn"]}, None, "rope.scaling.type"),
        ({TYPE: "yarn", FACTOR: "4"}, None, "rope.scaling.factor"),
        ({TYPE: "yarn", FACTOR: 4.0, "scaling.yarn_ext_factor": 0.5}, None, "yarn_ext_factor: expected 1, got 0.5"),
        ({TYPE: "yarn", FACTOR: 4.0, "scaling.yarn_attn_factor": 1.3}, None, "yarn_attn_factor: expected 1.138"),
        ({TYPE: "longrope"}, None, "rope short_factor"),
        ({TYPE: "longrope", FACTOR: 4.0}, {"short_factor": [1.0] * 32}, "expected none with longrope"),
        ({TYPE: "linear"}, {"short_factor": [1.0] * 32}, "expected longrope"),
        ({}, {"short_factor": [1.0] * 32}, "rope long_factor"),
    ],
)
def test_rope_keys_that_contradict(keys, factors, message):
    with pytest.raises(CheckpointError, match=message):
        rope_of(factors, **keys)


@pytest.mark.parametrize(("stated", "tokens", "expected"), [(None, 300, 300), (300, None, 300), (7, 300, 300)])
def test_vocabulary_size(stated, tokens, expected):
    """The list of tokens counts, as in llama.cpp."""
    metadata = {key: value for key, value in BASE.items() if key != "llama.vocab_size"}
    metadata |= {"llama.vocab_size": stated} if stated else {}
    metadata |= {"tokenizer.ggml.tokens": ["x"] * tokens} if tokens else {}
    assert hugging_face_config(metadata, LLAMA, ())["vocab_size"] == expected


def test_numbers_per_layer():
    metadata = BASE | {"llama.block_count": 3, "llama.attention.head_count": [2, 2, 2]}
    assert read_config(hugging_face_config(metadata, LLAMA, ())).num_heads == 2
    with pytest.raises(CheckpointError, match="num_heads: expected"):
        read_config(hugging_face_config(metadata | {"llama.attention.head_count": [2, 4, 2]}, LLAMA, ()))


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
@pytest.mark.parametrize("variant", ["llama", "qwen3"])
def test_storage_types(tmp_path, variant, kind):
    model = tiny_model(variant)
    write_gguf(tmp_path / "model.gguf", model, kind)  # rounds the weights of the model as well
    check(tmp_path / "model.gguf", model)


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS])
def test_blocks_are_dequantised_as_gguf_does(tmp_path, kind):
    """Types that the package cannot write: random blocks, read in pieces, against one call of its dequantiser."""
    from fdpp.checkpoints.gguf_file import GGUFFile

    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 100, (6, 2 * block_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("x", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "model.gguf")
    assert file.tensors["x"].shape == (6, 2 * block)
    rows = np.concatenate([file.rows("x", 0, 1), file.rows("x", 1, 6)])
    np.testing.assert_array_equal(rows, gguf.quants.dequantize(data, kind))


def test_one_part_of_a_split_file(tmp_path):
    write_gguf(tmp_path / "model.gguf", tiny_model("llama"), metadata={"split.count": 3})
    with pytest.raises(CheckpointError, match="one part of a split model"):
        LLM(tmp_path / "model.gguf")


def test_unknown_architecture(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="unknown architecture 'mamba'"):
        LLM(tmp_path / "model.gguf")
