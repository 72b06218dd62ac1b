"""Quantised files decoded as they are stored, against transformers with the very values of the file."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import gguf
import pytest
import torch

from fdpp.calibration import fingerprint
from fdpp.engine.explain_step import explain_step
from fdpp.errors import CheckpointError, RequestError
from fdpp.llm import LLM, open_model
from tests.engine.gguf_writer import write_gguf
from tests.engine.helpers import assert_logits_close, forced_logits, reference_logits
from tests.engine.models import VOCAB, tiny_model

Kind = gguf.GGMLQuantizationType
IDS = torch.randint(3, VOCAB, (90,), generator=torch.Generator().manual_seed(7)).tolist()
#: Activations are rounded to 16 bits per 32 elements, 2^-16 of the largest: random layers make this of it.
ROUNDED = 2e-3
#: Families whose layers differ in what stands around their matrices, with rows of a whole number of blocks.
FAMILIES = [
    "llama", "llama-tied", "llama-biased", "qwen3", "gpt-neox", "bloom", "mpt", "falcon-groups", "starcoder2",
    "stablelm-parallel", "phi3", "granite", "olmo2", "glm4", "gemma2-llama.cpp", "gemma3-llama.cpp",
    "smollm3-llama.cpp",
]  # fmt: skip


def mixed(name: str) -> Kind:
    """As files have it: other types for values, for the head, and here for the gate as well."""
    kinds = {"v_proj": Kind.Q8_0, "gate_proj": Kind.Q5_0, "lm_head": Kind.Q8_0, "embed": Kind.Q8_0}
    return next((kind for part, kind in kinds.items() if part in name), Kind.Q4_1)


def packed(llm: LLM) -> dict[str, str]:
    """The layouts of all matrices by the name of their first tensor."""
    return {w.sources[0].name: w.packing.layout for w in llm.model.weights() if w.packing is not None}


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q8_0, mixed], ids=["q4_0", "q8_0", "mixed"])
@pytest.mark.parametrize("variant", FAMILIES)
def test_families(tmp_path, variant, kind):
    model = tiny_model(variant)
    write_gguf(tmp_path / "model.gguf", model, kind)
    llm = LLM(tmp_path / "model.gguf", dtype="float32")
    matrices = sum(weight.is_matrix for weight in llm.model.weights())
    assert len(packed(llm)) == matrices > 0
    (logits,) = forced_logits(llm, [IDS], [70], None)
    assert_logits_close(logits, reference_logits(model, IDS)[69:], ROUNDED)


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS])
def test_kinds_of_super_blocks(tmp_path, kind):
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    model = tiny_model("llama", **sizes)
    write_gguf(tmp_path / "model.gguf", model, lambda name: Kind.Q6_K if "v_proj" in name else kind)
    llm = LLM(tmp_path / "model.gguf", dtype="float32")
    name = kind.name.lower()
    expected = f"{name}:512" if kind == Kind.Q6_K else f"{name}:384,q6_k:128"
    assert packed(llm)["model.layers.0.self_attn.q_proj.weight"] == expected
    (logits,) = forced_logits(llm, [IDS], [70], None)
    assert_logits_close(logits, reference_logits(model, IDS)[69:], ROUNDED)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "model.gguf"
    write_gguf(path, tiny_model("llama"), mixed)
    return path


def test_rows_of_no_whole_number_of_blocks_are_unpacked(tmp_path):
    """gguf stores them in a float type."""
    model = tiny_model("llama", intermediate_size=200)
    write_gguf(tmp_path / "model.gguf", model, lambda name: Kind.F16 if "down" in name else Kind.Q4_0)
    llm = LLM(tmp_path / "model.gguf", dtype="float32")
    assert llm.model.blocks[0].mlp.down.weight.packing is None
    (logits,) = forced_logits(llm, [IDS], [70], None)
    assert_logits_close(logits, reference_logits(model, IDS)[69:], ROUNDED)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_way_to_decode_says_the_same(path, dtype):
    prompts, options = [IDS[:5], IDS[:70], IDS[5:9]], {"max_new_tokens": 60, "ignore_eos": True}
    expected = [c.token_ids for c in LLM(path, dtype=dtype, capture=False).generate(prompts, **options)]
    ways = [
        {},
        {"page_size": 16},
        {"max_batch_size": 1},
        {"speculate": "ngram"},
        {"draft": path, "max_batch_size": 1},
    ]
    for way in ways:
        assert [c.token_ids for c in LLM(path, dtype=dtype, **way).generate(prompts, **options)] == expected, way


def test_a_step_is_replayed_as_a_whole(path):
    llm = LLM(path)
    assert "called from Python: nothing" in explain_step(llm.model, 2)


def test_bytes_of_a_step_are_those_of_the_file(path):
    stored, dequantised = LLM(path), LLM(path, weights="dequantised")
    assert not packed(dequantised) and stored.model.dtype == dequantised.model.dtype == torch.bfloat16
    assert stored.model.step_bytes(0) < 0.45 * dequantised.model.step_bytes(0)
    assert fingerprint(stored.model) == fingerprint(dequantised.model)  # a calibration of one is one of the other


def test_weights_can_be_loaded_again_and_copied(path):
    llm = LLM(path)
    expected = llm.generate([IDS[:9]], max_new_tokens=9)[0].token_ids
    for weight in llm.model.weights():
        again = pickle.loads(pickle.dumps(weight))
        assert again.packing == weight.packing and torch.equal(again.tensor, weight.tensor)
        assert copy.deepcopy(weight).tensor.untyped_storage().nbytes() == weight.tensor.nbytes
    assert LLM(path).generate([IDS[:9]], max_new_tokens=9)[0].token_ids == expected


@pytest.mark.parametrize("wrong", ["packed", "", 4, True])
def test_an_unknown_choice_is_refused(path, wrong):
    with pytest.raises(RequestError, match="weights: expected 'stored' or 'dequantised', got"):
        LLM(path, weights=wrong)


def test_damaged_scales_are_refused(path, tmp_path):
    data = bytearray(path.read_bytes())
    checkpoint, _ = open_model(path)
    info = checkpoint._file.tensors["blk.1.ffn_down.weight"]
    data[info.offset : info.offset + 2] = b"\xff\x7f"
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"mlp.down_proj.weight: not all values are finite in q4_1:128"):
        LLM(tmp_path / "model.gguf")


LOAD = """
import resource, sys
from fdpp import LLM
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
llm = LLM(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_loading_keeps_one_copy(real_model):
    """Peak memory beyond what the imports take: the packed weights, and never the whole mapping beside them."""
    printed = subprocess.run(
        [sys.executable, "-c", LOAD, real_model], capture_output=True, text=True, check=True
    ).stdout
    assert int(printed) * 1024 < 1.15 * real_model.stat().st_size + 200e6
