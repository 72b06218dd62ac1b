"""GGUF files of every storage type and family, written with the gguf package, against transformers."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from fdpp.engine.llm import LLM
from fdpp.errors import CheckpointError
from tests.engine.gguf_writer import write_gguf
from tests.engine.helpers import assert_logits_close, forced_logits, reference_logits
from tests.engine.models import VOCAB, tiny_model

Kind = gguf.GGMLQuantizationType
IDS = torch.randint(3, VOCAB, (50,), generator=torch.Generator().manual_seed(7)).tolist()


def check(path, model):
    (logits,) = forced_logits(LLM(path, dtype="float32"), [IDS], [30], None)
    assert_logits_close(logits, reference_logits(model, IDS)[29:])


@pytest.mark.parametrize(
    "variant", ["llama", "llama-tied", "llama3-rope", "linear-rope", "llama-biased", "mistral-full", "qwen2", "qwen3"]
)
def test_families(tmp_path, variant):
    model = tiny_model(variant)
    write_gguf(tmp_path / "model.gguf", model)
    check(tmp_path / "model.gguf", model)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
@pytest.mark.parametrize("variant", ["llama", "qwen3"])
def test_storage_types(tmp_path, variant, kind):
    model = tiny_model(variant)
    write_gguf(tmp_path / "model.gguf", model, kind)  # rounds the weights of the model as well
    check(tmp_path / "model.gguf", model)


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS])
def test_blocks_are_dequantised_as_gguf_does(tmp_path, kind):
    """Types that the package cannot write: random blocks, read in pieces, against one call of its dequantiser."""
    from fdpp.engine.gguf_file import GGUFFile

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
