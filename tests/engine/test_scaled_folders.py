"""Directories with int8, FP8 and NVFP4 weights, against transformers with the very values that they stand for."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from fdpp.checkpoints import open_checkpoint
from fdpp.errors import CheckpointError
from fdpp.llm import LLM
from tests.engine.folder_writer import edit_config, layouts
from tests.engine.helpers import assert_logits_close, forced_logits, reference_logits
from tests.engine.models import VOCAB, tiny_model
from tests.engine.scaled_folder_writer import Scaled, write_scaled_folder

IDS = torch.randint(3, VOCAB, (60,), generator=torch.Generator().manual_seed(7)).tolist()
SIZES = {"hidden_size": 256, "intermediate_size": 512}
#: As in test_stored_weights.py.
ROUNDED = 2e-3
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
INTEGERS = [
    *(
        Scaled("int-quantized", strategy, scales=scales, is_integer=True)
        for strategy in ("channel", "tensor")
        for scales in (F32, BF16)
    ),
    Scaled("int-quantized", "channel", is_integer=True, is_static=True),
    Scaled("naive-quantized", "channel", scales=F16, is_integer=True),
]
FLOATS = [
    Scaled("fp8", "block", scales=F32),
    Scaled("fp8", "block", (64, 48), F32),
    Scaled("float-quantized", "tensor", scales=F32),
    Scaled("float-quantized", "channel"),
    Scaled("float-quantized", "block"),
    Scaled("float-quantized", "tensor", is_static=True),
    Scaled("naive-quantized", "channel", scales=F32),
    Scaled("nvfp4-pack-quantized", "tensor_group"),
]


def logits(path, weights):
    llm = LLM(path, dtype="float32", weights=weights)
    return forced_logits(llm, [IDS], [50], None)[0], llm


@pytest.mark.parametrize("scheme", INTEGERS, ids=str)
def test_integers_stay_as_they_are_stored(tmp_path, scheme):
    model = tiny_model("llama", **SIZES)
    write_scaled_folder(tmp_path, model, scheme)
    expected = reference_logits(model, IDS)[49:]
    packed, llm = logits(tmp_path, "stored")
    assert_logits_close(packed, expected, ROUNDED)
    found = layouts(llm)
    assert found["self_attn.q_proj.weight"] == "int8_128:512" and found["mlp.down_proj.weight"] == "int8_128:256"
    assert_logits_close(logits(tmp_path, "dequantised")[0], expected)


def test_rows_that_no_block_divides_are_unpacked(tmp_path):
    model = tiny_model("llama", hidden_size=256, intermediate_size=200)
    write_scaled_folder(tmp_path, model, INTEGERS[0])
    packed, llm = logits(tmp_path, "stored")
    assert_logits_close(packed, reference_logits(model, IDS)[49:], ROUNDED)
    assert layouts(llm)["mlp.down_proj.weight"] is None and layouts(llm)["mlp.gate_proj.weight"] == "int8_128:400"


@pytest.mark.parametrize("scheme", FLOATS, ids=str)
def test_floats_are_unpacked(tmp_path, scheme):
    model = tiny_model("llama", hidden_size=256, intermediate_size=208)  # blocks that the edges cut
    write_scaled_folder(tmp_path, model, scheme)
    found, llm = logits(tmp_path, "dequantised")
    assert not any(weight.packing for weight in llm.model.weights())
    assert_logits_close(found, reference_logits(model, IDS)[49:])
    checkpoint = open_checkpoint(tmp_path)
    for name, parameter in model.named_parameters():
        for dtype in (F32, BF16):  # exact, and rounded once
            values = torch.empty(checkpoint.shapes[name], dtype=dtype)
            checkpoint.read_into(name, values)
            assert torch.equal(values, parameter.to(dtype)), name


@pytest.mark.parametrize("scheme", [FLOATS[0], FLOATS[-1]], ids=str)
def test_what_cannot_stay_says_so(tmp_path, scheme):
    write_scaled_folder(tmp_path, tiny_model("llama", **SIZES), scheme)
    kind = "NVFP4" if scheme is FLOATS[-1] else "FP8"
    with pytest.raises(
        CheckpointError, match=f"expected 'dequantised' with {kind}, which has no packed form, got 'stored'"
    ):
        LLM(tmp_path, weights="stored")
    with pytest.warns(UserWarning, match=f"{kind} has no packed form: weights are unpacked to bfloat16"):
        LLM(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LLM(tmp_path, weights="dequantised")


def test_families(tmp_path):
    """Fused tensors, and biases beside the parts of a module."""
    for variant in ("phi3", "qwen2"):
        model = tiny_model(variant, **SIZES)
        write_scaled_folder(tmp_path / variant, model, FLOATS[0])
        assert_logits_close(logits(tmp_path / variant, "dequantised")[0], reference_logits(model, IDS)[49:])


@pytest.mark.parametrize("scheme", [INTEGERS[0], FLOATS[0], FLOATS[3]], ids=str)
def test_modules_that_are_not_converted_stay(tmp_path, scheme):
    model = tiny_model("llama", **SIZES)
    write_scaled_folder(tmp_path, model, scheme, lambda name: "v_proj" not in name)
    assert_logits_close(logits(tmp_path, "dequantised")[0], reference_logits(model, IDS)[49:])


def test_an_old_file(tmp_path):
    """What torch.save wrote."""
    for scheme in (INTEGERS[0], FLOATS[3], FLOATS[-1]):
        model, path = tiny_model("llama", **SIZES), tmp_path / str(scheme)
        write_scaled_folder(path, model, scheme)
        torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
        assert_logits_close(logits(path, "dequantised")[0], reference_logits(model, IDS)[49:])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for scheme in (INTEGERS[0], FLOATS[0], FLOATS[2], FLOATS[3], FLOATS[-1]):
        name = f"{scheme.format}-{scheme.strategy}"
        found[name] = tmp_path_factory.mktemp(name)
        write_scaled_folder(found[name], tiny_model("llama", **SIZES), scheme)
    return found


INT8, BLOCK, TENSOR, CHANNEL, NVFP4 = (
    *("int-quantized-channel", "fp8-block", "float-quantized-tensor", "float-quantized-channel"),
    "nvfp4-pack-quantized-tensor_group",
)
O = "model.layers.1.self_attn.o_proj"  # noqa: E741


def refused(folders, which, tmp_path, message, config=None, tensors=None):
    source = folders[which]
    edit = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(edit))
    if config is not None:
        config(edit["quantization_config"])
        edit_config(tmp_path, {"quantization_config": edit["quantization_config"]})
    content = load_file(source / "model.safetensors")
    if tensors is not None:
        tensors(content)
    save_file({name: tensor.contiguous() for name, tensor in content.items()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        LLM(tmp_path, dtype="float32", weights="dequantised")
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("which", "changes", "message"),
    [
        (BLOCK, {"weight_block_size": None}, "expected weight_block_size of two sizes, got None"),
        (BLOCK, {"weight_block_size": [128]}, "expected weight_block_size of two sizes, got [128]"),
        (BLOCK, {"weight_block_size": [0, 128]}, "expected weight_block_size of two sizes, got [0, 128]"),
        (BLOCK, {"weight_block_size": [128, 1 << 70]}, "expected weight_block_size of two sizes, got [128, 118"),
        (BLOCK, {"weight_block_size": [True, 128]}, "expected weight_block_size of two sizes"),
        (
            BLOCK,
            {"weight_block_size": [64, 128]},
            "weight_scale_inv: expected F32 or BF16 or F16 (4, 4), got F32 (2, 4)",
        ),
        (BLOCK, {"activation_scheme": "static"}, "expected activation_scheme None or 'dynamic', got 'static'"),
        (BLOCK, {"fmt": "e5m2"}, "expected fmt None or 'e4m3', got 'e5m2'"),
        (INT8, {"num_bits": 4}, "expected num_bits 8, got 4"),
        (INT8, {"symmetric": False}, "expected symmetric True, got False"),
        (INT8, {"strategy": "group"}, "expected strategy 'channel' or 'tensor', got 'group'"),
        (INT8, {"strategy": "tensor"}, "weight_scale: expected F16 or BF16 or F32 (1,), got F32 (256, 1)"),
        (INT8, {"type": "float"}, "expected type 'int', got 'float'"),
        (CHANNEL, {"type": "int"}, "expected type 'float', got 'int'"),
        (CHANNEL, {"strategy": "block"}, "expected block_structure of two sizes, got None"),
        (CHANNEL, {"strategy": "block", "block_structure": "128x128"}, "block_structure of two sizes, got '128x128'"),
        (TENSOR, {"strategy": "channel"}, "weight_scale: expected F32 or BF16 or F16 (256, 1), got F32 (1,)"),
        (NVFP4, {"group_size": 32}, "expected group_size 16, got 32"),
        (NVFP4, {"strategy": "channel"}, "expected strategy 'tensor_group', got 'channel'"),
    ],
)
def test_configs_that_are_refused(folders, tmp_path, which, changes, message):
    def edit(config):
        (config if which == BLOCK else config["config_groups"]["group_0"]["weights"]).update(changes)

    refused(folders, which, tmp_path, message, config=edit)


@pytest.mark.parametrize(
    ("which", "part", "change", "message"),
    [
        (INT8, "weight", None, "o_proj.weight is missing"),
        (INT8, "weight_scale", None, "o_proj.weight: expected a dtype of"),
        (INT8, "weight", lambda t: t.float(), "o_proj.weight: expected I8 (256, 256), got F32 (256, 256)"),
        (INT8, "weight", lambda t: t[:128], "expected F16 or BF16 or F32 (128, 1), got F32 (256, 1)"),
        (INT8, "weight", lambda t: t.flatten(), "o_proj.weight: expected a matrix, got shape (65536,)"),
        (INT8, "weight_scale", lambda t: t.T, "weight_scale: expected F16 or BF16 or F32 (256, 1), got F32 (1, 256)"),
        (INT8, "weight_scale", lambda t: t * float("nan"), "not all values are finite"),
        (BLOCK, "weight", None, "o_proj.weight is missing"),
        (BLOCK, "weight_scale_inv", None, "o_proj.weight: expected a dtype of"),
        (BLOCK, "weight", lambda t: t.view(torch.uint8), "expected F8_E4M3 (256, 256), got U8 (256, 256)"),
        (BLOCK, "weight", lambda t: t.view(torch.uint8).fill_(0x7F).view(t.dtype), "not all values are finite"),
        (BLOCK, "weight", lambda t: t[:, :256][:100], "weight_scale_inv: expected F32 or BF16 or F16 (1, 2)"),
        (BLOCK, "weight_scale_inv", lambda t: t * float("nan"), "not all values are finite"),
        (BLOCK, "weight_scale_inv", lambda t: t / 0, "not all values are finite"),
        (BLOCK, "weight_scale_inv", lambda t: t.flatten(), "expected F32 or BF16 or F16 (2, 2), got F32 (4,)"),
        (BLOCK, "weight_scale_inv", lambda t: t.int(), "expected F32 or BF16 or F16 (2, 2), got I32 (2, 2)"),
        (TENSOR, "weight_scale", lambda t: t.repeat(2), "expected F32 or BF16 or F16 (1,), got F32 (2,)"),
        (NVFP4, "weight_packed", None, "o_proj.weight_packed is missing"),
        (NVFP4, "weight_scale", None, "o_proj.weight_scale is missing"),
        (NVFP4, "weight_global_scale", None, "o_proj.weight_global_scale is missing"),
        (NVFP4, "weight_packed", lambda t: t.view(torch.int8), "expected U8 (256, 128), got I8 (256, 128)"),
        (NVFP4, "weight_packed", lambda t: t[:, :64], "weight_scale: expected F8_E4M3 (256, 8), got F8_E4M3 (256, 16)"),
        (NVFP4, "weight_scale", lambda t: t.float(), "weight_scale: expected F8_E4M3 (256, 16), got F32 (256, 16)"),
        (NVFP4, "weight_global_scale", lambda t: t * 0, "not all values are finite"),
        (NVFP4, "weight_global_scale", lambda t: t / 0 * 0, "not all values are finite"),
        (NVFP4, "weight", lambda t: torch.zeros(256, 256), "o_proj.weight occurs twice"),
    ],
)
def test_tensors_that_are_refused(folders, tmp_path, which, part, change, message):
    def edit(tensors):
        found = tensors.pop(f"{O}.{part}", None)
        if change is not None:
            tensors[f"{O}.{part}"] = change(found)

    refused(folders, which, tmp_path, message, tensors=edit)


def test_a_number_as_a_scale(folders, tmp_path):
    """Of no dimension, as some tools write it."""
    config = json.loads((folders[TENSOR] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(folders[TENSOR] / "model.safetensors")
    tensors = {name: t.reshape(()) if name.endswith("weight_scale") else t for name, t in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(logits(tmp_path, "dequantised")[0], logits(folders[TENSOR], "dequantised")[0])
