"""Directories with integer weights, against transformers with the very values that they stand for."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from fdpp.errors import CheckpointError
from fdpp.llm import LLM
from tests.engine.folder_writer import Scheme, edit_config, input_of, layouts, parts, quantise, write_folder
from tests.engine.helpers import assert_logits_close, forced_logits, reference_logits
from tests.engine.models import VOCAB, tiny_model

IDS = torch.randint(3, VOCAB, (60,), generator=torch.Generator().manual_seed(7)).tolist()
#: As in test_stored_weights.py.
ROUNDED = 2e-3
SIZES = {"hidden_size": 256, "intermediate_size": 512}


def every(name: str) -> int:
    return sum(map(ord, name))


BF16 = torch.bfloat16
SCHEMES = [
    *(Scheme("gptq", size, symmetric=symmetric) for size in (32, 64, 128, -1) for symmetric in (True, False)),
    *(Scheme("awq", size, symmetric=symmetric) for size in (32, 64, 128, -1) for symmetric in (True, False)),
    *(Scheme("pack-quantized", size, symmetric=s) for size in (32, 64, 128, -1) for s in (True, False)),
    Scheme("gptq_v2", 128, symmetric=False),
    Scheme("gptq", 128, scales=BF16),
    Scheme("awq", 128, symmetric=False, scales=BF16),
    *(Scheme("pack-quantized", size, symmetric=False, scales=BF16) for size in (32, -1)),
    *(Scheme("pack-quantized", size, bits=8, scales=scales) for size in (128, -1) for scales in (torch.float16, BF16)),
    Scheme("gptq", 128, bits=8),
    Scheme("gptq_v2", -1, bits=8),
    *(Scheme("gptq", size, symmetric=False, act_order=input_of) for size in (32, 64, 128)),
    Scheme("gptq", 128, bits=8, act_order=input_of),
    *(Scheme("pack-quantized", size, symmetric=False, act_order=input_of) for size in (32, 128)),
]


def format_of(scheme: Scheme) -> str:
    return "int8_128" if scheme.bits == 8 else "int4_32" if scheme.group_size in (32, 64) else "int4_128"


def check_logits(path, model) -> LLM:
    """Packed and unpacked; returns the packed one."""
    expected = reference_logits(model, IDS)[49:]
    llm = LLM(path, dtype="float32")
    assert_logits_close(forced_logits(llm, [IDS], [50], None)[0], expected, ROUNDED)
    unpacked = LLM(path, dtype="float32", weights="dequantised")
    assert not any(weight.packing for weight in unpacked.model.weights())
    assert_logits_close(forced_logits(unpacked, [IDS], [50], None)[0], expected)
    return llm


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_schemes(tmp_path, scheme):
    model = tiny_model("llama", **SIZES)
    write_folder(tmp_path, model, scheme)
    llm = check_logits(tmp_path, model)
    name = format_of(scheme)
    assert layouts(llm) == {
        "embed_tokens.weight": None,
        "self_attn.q_proj.weight": f"{name}:512",
        "self_attn.o_proj.weight": f"{name}:256",
        "mlp.gate_proj.weight": f"{name}:1024",
        "mlp.down_proj.weight": f"{name}:256",
        "lm_head.weight": None,
    }
    orders = [w.packing.columns is not None for w in llm.model.weights() if w.packing]
    assert orders == [scheme.act_order is not None] * 12


def exact_values(llm: LLM) -> list[torch.Tensor]:
    from fdpp import ops

    return [
        ops.dequantize_rows(w.tensor, w.packing.layout, w.shape[1], torch.arange(w.shape[0]))
        for w in llm.model.weights()
        if w.packing
    ]


@pytest.mark.parametrize(
    "scheme", [Scheme("gptq", 32, symmetric=False), Scheme("pack-quantized", 128, bits=8)], ids=str
)
def test_nothing_is_rounded(tmp_path, scheme):
    model = tiny_model("llama", **SIZES)
    write_folder(tmp_path, model, scheme)
    llm, layer = LLM(tmp_path, dtype="float32"), model.model.layers[0]
    qkv, o, gate_up, down, *_ = exact_values(llm)
    attention, mlp = layer.self_attn, layer.mlp
    assert torch.equal(qkv, torch.cat([m.weight for m in (attention.q_proj, attention.k_proj, attention.v_proj)]))
    assert torch.equal(o, attention.o_proj.weight)
    assert torch.equal(gate_up, torch.stack([mlp.gate_proj.weight, mlp.up_proj.weight], dim=1).flatten(0, 1))
    assert torch.equal(down, mlp.down_proj.weight)


@pytest.mark.parametrize("scheme", [Scheme("gptq"), Scheme("awq"), Scheme("pack-quantized")], ids=str)
@pytest.mark.parametrize("variant", ["phi3", "qwen2", "starcoder2"])
def test_families(tmp_path, variant, scheme):
    """Fused tensors, and biases beside the parts of a module."""
    model = tiny_model(variant, **SIZES)
    write_folder(tmp_path, model, scheme)
    found = layouts(check_logits(tmp_path, model))
    assert {name for name, layout in found.items() if layout is None} - {"lm_head.weight"} == {"embed_tokens.weight"}


def test_a_model_that_sees(tmp_path):
    """The config of the text and quantization_config stand side by side."""
    model = tiny_model("gemma3", **SIZES)
    write_folder(tmp_path, model, Scheme("pack-quantized", 32))
    config = json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}
    whole["quantization_config"] = config.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(whole | {"text_config": config}))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({f"language_model.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert layouts(check_logits(tmp_path, model))["self_attn.q_proj.weight"] == "int4_32:512"


def test_modules_that_are_not_converted_stay(tmp_path):
    """Where one of several merged matrices is plain, all of them are."""
    model = tiny_model("llama", **SIZES)
    write_folder(tmp_path, model, Scheme("pack-quantized"), lambda name: "v_proj" not in name and "down" not in name)
    found = layouts(check_logits(tmp_path, model))
    assert found["self_attn.q_proj.weight"] is None and found["mlp.down_proj.weight"] is None
    assert found["self_attn.o_proj.weight"] == "int4_128:256" and found["mlp.gate_proj.weight"] == "int4_128:1024"


@pytest.mark.parametrize("method", ["gptq", "pack-quantized"])
def test_orders_that_differ_are_unpacked(tmp_path, method):
    model = tiny_model("llama", **SIZES)
    write_folder(tmp_path, model, Scheme(method, act_order=every))
    found = layouts(check_logits(tmp_path, model))
    assert found["self_attn.q_proj.weight"] is None and found["mlp.gate_proj.weight"] is None
    assert found["self_attn.o_proj.weight"] == found["mlp.down_proj.weight"] == "int4_128:256"


def test_groups_of_sizes_of_their_own_are_unpacked(tmp_path):
    """And a module without g_idx has its groups side by side."""
    model = tiny_model("llama", **SIZES)
    write_folder(tmp_path, model, Scheme("gptq"))
    name = "model.layers.0.mlp.down_proj"
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.self_attn.o_proj.g_idx"]
    tensors[f"{name}.g_idx"] = groups = torch.tensor([0] * 100 + [1] * 100 + [2] * 100 + [3] * 212, dtype=torch.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.no_grad():
        down = model.get_submodule(name).weight
        scales = tensors[f"{name}.scales"].T.float()
        own = scales[:, torch.arange(512) // 128]
        down.copy_((down / own).round() * scales[:, groups.long()])
    found = layouts(check_logits(tmp_path, model))
    assert found["mlp.down_proj.weight"] is None and found["self_attn.o_proj.weight"] == "int4_128:256"


def test_biases_of_zeros(tmp_path):
    """Of modules of a model that has none: left out, and others are refused."""
    model = tiny_model("llama", **SIZES)
    write_folder(tmp_path, model, Scheme("gptq"))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.bias"] = torch.zeros(512)
    save_file(tensors, tmp_path / "model.safetensors")
    check_logits(tmp_path, model)
    for name, value in (("mlp.up_proj", 1.0), ("input_layernorm", 0.0)):
        changed = tensors | {f"model.layers.2.{name}.bias": torch.full((256,), value)}
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=f"1 tensors that this architecture does not have.*{name}.bias"):
            LLM(tmp_path)


def test_an_old_file(tmp_path):
    """What torch.save wrote."""
    model = tiny_model("llama", **SIZES)
    write_folder(tmp_path, model, Scheme("gptq", act_order=input_of))
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert layouts(check_logits(tmp_path, model))["self_attn.q_proj.weight"] == "int4_128:512"


@pytest.mark.parametrize("scheme", [Scheme("awq"), Scheme("gptq", act_order=input_of)], ids=str)
def test_every_way_to_decode_says_the_same(tmp_path, scheme):
    write_folder(tmp_path, tiny_model("llama", **SIZES), scheme)
    prompts, options = [IDS[:5], IDS[:40], IDS[5:9]], {"max_new_tokens": 30, "ignore_eos": True}
    expected = [c.token_ids for c in LLM(tmp_path, capture=False).generate(prompts, **options)]
    for way in ({}, {"page_size": 16}, {"max_batch_size": 1}, {"speculate": "ngram"}):
        assert [c.token_ids for c in LLM(tmp_path, **way).generate(prompts, **options)] == expected, way


def test_weights_with_an_order_can_be_copied(tmp_path):
    write_folder(tmp_path, tiny_model("llama", **SIZES), Scheme("gptq", act_order=input_of))
    for weight in LLM(tmp_path).model.weights():
        again = pickle.loads(pickle.dumps(weight))
        assert again.packing == weight.packing and torch.equal(again.tensor, weight.tensor)
        for other in (again, copy.deepcopy(weight)):
            if weight.packing is not None:
                assert torch.equal(other.packing.columns, weight.packing.columns)


def test_an_embedding_with_an_order(tmp_path):
    """Of a table that is quantised as the matrices are, and is the head, too."""
    model, scheme = tiny_model("llama-tied", **SIZES), Scheme("gptq", act_order=lambda name: 3)
    write_folder(tmp_path, model, scheme)
    tensors = load_file(tmp_path / "model.safetensors")
    table = model.model.embed_tokens.weight
    integers = quantise(table.detach(), scheme, "model.embed_tokens")
    del tensors["model.embed_tokens.weight"]
    tensors |= {f"model.embed_tokens.{part}": tensor for part, tensor in parts(integers, scheme).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    with torch.no_grad():
        table.copy_(integers.values())
    assert layouts(check_logits(tmp_path, model))["embed_tokens.weight"] == f"int4_128:{VOCAB}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One of each method, by its name; a module for each act order and zero points has all parts."""
    found = {}
    for method in ("gptq", "awq", "pack-quantized"):
        found[method] = tmp_path_factory.mktemp(method)
        order = None if method == "awq" else input_of
        write_folder(found[method], tiny_model("llama", **SIZES), Scheme(method, symmetric=False, act_order=order))
    return found


def refused(folders, method, tmp_path, message, config=None, tensors=None):
    """Loading what is changed so raises one line with this message."""
    source = folders[method]
    edit = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(edit))
    if config is not None:
        edit_config(tmp_path, {"quantization_config": config(edit["quantization_config"])})
    content = load_file(source / "model.safetensors")
    if tensors is not None:
        tensors(content)
    save_file({name: tensor.contiguous() for name, tensor in content.items()}, tmp_path / "model.safetensors")
    for weights in ("stored", "dequantised"):
        with pytest.raises(CheckpointError) as error:
            LLM(tmp_path, dtype="float32", weights=weights)
        assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("gptq", {"quant_method": "hqq"}, "'awq' or 'compressed-tensors' or 'fp8' or 'gptq', got 'hqq'"),
        ("gptq", {"quant_method": None}, "got None"),
        ("gptq", {"quant_method": ["gptq"]}, "got ['gptq']"),
        ("gptq", {"quant_method": "x\n" * 999}, "expected quant_method"),
        ("gptq", {"bits": 3}, "expected bits 4 or 8, got 3"),
        ("gptq", {"bits": 4.0}, "expected bits 4 or 8, got 4.0"),
        ("gptq", {"bits": True}, "expected bits 4 or 8, got True"),
        ("gptq", {"bits": 8, "sym": False}, "expected sym True, got False"),
        ("gptq", {"bits": 8, "sym": True}, "qzeros: expected I32 (2, 64), got I32 (4, 32)"),
        ("gptq", {"checkpoint_format": "marlin"}, "expected checkpoint_format 'gptq' or 'gptq_v2', got 'marlin'"),
        ("gptq", {"group_size": "128"}, "expected group_size -1 or at least 1, got '128'"),
        ("gptq", {"group_size": 0}, "expected group_size -1 or at least 1, got 0"),
        ("gptq", {"group_size": -2}, "expected group_size -1 or at least 1, got -2"),
        ("gptq", {"group_size": 1 << 70}, "expected groups of a multiple of 32 columns that divide its 512"),
        (
            "gptq",
            {"group_size": 16},
            "expected groups of a multiple of 32 columns that divide its 512, got group_size 16",
        ),
        (
            "gptq",
            {"group_size": 96},
            "expected groups of a multiple of 32 columns that divide its 512, got group_size 96",
        ),
        ("gptq", {"group_size": 64}, "qzeros: expected I32 (8, 32), got I32 (4, 32)"),
        ("gptq", {"group_size": -1}, "qzeros: expected I32 (1, 32), got I32 (4, 32)"),
        ("awq", {"bits": 8}, "expected bits 4, got 8"),
        ("awq", {"version": "gemv"}, "expected version 'gemm' or 'GEMM', got 'gemv'"),
        ("awq", {"group_size": 48}, "expected groups of a multiple of 32"),
        ("awq", {"quant_method": "gptq", "checkpoint_format": "gptq"}, "expected"),
        ("pack-quantized", {"format": "marlin-24"}, "or 'pack-quantized', got 'marlin-24'"),
        ("pack-quantized", {"config_groups": {}}, "expected config_groups with one group, got {}"),
        ("pack-quantized", {"config_groups": None}, "expected config_groups with one group, got None"),
        ("pack-quantized", {"config_groups": {"a": {}, "b": {}}}, "expected config_groups with one group"),
        ("pack-quantized", {"config_groups": {"a": ["Linear"]}}, "expected config_groups with one group"),
        ("pack-quantized", {"config_groups": {"a": {}}}, "expected weights as a JSON object, got None"),
        ("pack-quantized", {"kv_cache_scheme": {"num_bits": 8}}, "expected no kv_cache_scheme, got {'num_bits': 8}"),
        ("pack-quantized", {"transform_config": {"config_groups": {"u": {}}}}, "expected no transform_config"),
        ("pack-quantized", {"sparsity_config": {"format": "sparse-24"}}, "expected sparsity_config of format 'dense'"),
    ],
)
def test_configs_that_are_refused(folders, tmp_path, method, changes, message):
    refused(folders, method, tmp_path, message, config=lambda config: config | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bits": 3}, "expected num_bits 4 or 8, got 3"),
        ({"num_bits": 8}, "expected symmetric True, got False"),
        ({"type": "float"}, "expected type 'int', got 'float'"),
        ({"symmetric": None}, "expected symmetric True or False, got None"),
        ({"symmetric": True}, "weight_zero_point: expected a dtype"),
        ({"strategy": "block"}, "expected strategy 'group' or 'channel', got 'block'"),
        ({"group_size": None}, "expected group_size -1 or at least 1, got None"),
        ({"group_size": 24}, "expected groups of a multiple of 32 columns that divide its 512, got group_size 24"),
        ({"strategy": "channel"}, "weight_scale: expected F16 or BF16 or F32 (256, 1), got F16 (256, 4)"),
        ({"actorder": "sideways"}, "expected actorder"),
        ({"input": {"num_bits": 8}}, "expected input_activations null, got {'num_bits': 8}"),
    ],
)
def test_groups_of_modules_that_are_refused(folders, tmp_path, changes, message):
    def config(config):
        group = config["config_groups"]["group_0"]
        if "input" in changes:
            group["input_activations"] = changes["input"]
        else:
            group["weights"] |= changes
        return config

    refused(folders, "pack-quantized", tmp_path, message, config=config)


O = "model.layers.1.self_attn.o_proj"  # noqa: E741


@pytest.mark.parametrize(
    ("method", "part", "change", "message"),
    [
        ("gptq", "qweight", None, "o_proj.qweight is missing"),
        ("gptq", "qzeros", None, "o_proj.qzeros is missing"),
        ("gptq", "scales", None, "o_proj.scales is missing"),
        ("gptq", "g_idx", None, "o_proj.g_idx is missing"),
        ("awq", "qzeros", None, "o_proj.qzeros is missing"),
        ("pack-quantized", "weight_packed", None, "o_proj.weight_packed is missing"),
        ("pack-quantized", "weight_scale", None, "o_proj.weight_scale is missing"),
        ("pack-quantized", "weight_shape", None, "o_proj.weight_shape is missing"),
        ("pack-quantized", "weight_zero_point", None, "o_proj.weight_zero_point is missing"),
        ("pack-quantized", "weight_g_idx", None, "o_proj.weight_g_idx is missing"),
        ("gptq", "qweight", lambda t: t.long(), "qweight: expected I32 (32, 256), got I64 (32, 256)"),
        ("gptq", "qweight", lambda t: t.float(), "qweight: expected I32 (32, 256), got F32 (32, 256)"),
        ("gptq", "qweight", lambda t: t.flatten(), "qweight: expected a matrix, got shape (8192,)"),
        ("gptq", "qweight", lambda t: t[:0], "qweight: expected a matrix, got shape (0, 256)"),
        ("gptq", "qweight", lambda t: t[:16], "expected"),
        ("gptq", "qweight", lambda t: t[:, :128], "expected"),
        ("gptq", "qweight", lambda t: t.repeat(2, 1), "expected"),
        ("gptq", "qzeros", lambda t: t.T, "qzeros: expected I32 (2, 32), got I32 (32, 2)"),
        ("gptq", "scales", lambda t: t.double(), "scales: expected F16 or BF16 or F32 (2, 256), got F64 (2, 256)"),
        ("gptq", "scales", lambda t: t.int(), "scales: expected F16 or BF16 or F32 (2, 256), got I32 (2, 256)"),
        ("gptq", "scales", lambda t: t[:1], "scales: expected F16 or BF16 or F32 (2, 256), got F16 (1, 256)"),
        ("gptq", "scales", lambda t: t * float("nan"), "not all values are finite"),
        ("gptq", "scales", lambda t: t / 0, "not all values are finite"),
        ("gptq", "g_idx", lambda t: t.long(), "g_idx: expected I32 (256,), got I64 (256,)"),
        ("gptq", "g_idx", lambda t: t[:-1], "g_idx: expected I32 (256,), got I32 (255,)"),
        ("gptq", "g_idx", lambda t: t + 1, "o_proj.g_idx: expected 0 to 1, got 1 to 2"),
        ("gptq", "g_idx", lambda t: t - 1, "o_proj.g_idx: expected 0 to 1, got -1 to 0"),
        ("gptq", "g_idx", lambda t: t * 2**31 + 2**31 - 1, "o_proj.g_idx: expected 0 to 1, got"),
        ("gptq", "weight", lambda t: torch.zeros(256, 256), "o_proj.weight occurs twice"),
        ("awq", "qweight", lambda t: t.T, "expected"),
        ("awq", "scales", lambda t: t.T, "scales: expected F16 or BF16 or F32 (2, 256), got F16 (256, 2)"),
        ("awq", "g_idx", lambda t: torch.zeros(256), "tensors that this architecture does not have"),
        ("pack-quantized", "weight_shape", lambda t: t - 1, "weight_shape: expected [256, 256], got [255, 255]"),
        ("pack-quantized", "weight_shape", lambda t: t.float(), "weight_shape: expected I64 or I32 (2,), got F32 (2,)"),
        ("pack-quantized", "weight_g_idx", lambda t: t + 9, "o_proj.weight_g_idx: expected 0 to 1, got 9 to 10"),
        ("pack-quantized", "weight_scale", lambda t: t.T, "weight_scale: expected F16 or BF16 or F32 (256, 2)"),
        ("pack-quantized", "weight_zero_point", lambda t: t.T, "weight_zero_point: expected I32 (32, 2)"),
        ("pack-quantized", "weight", lambda t: torch.zeros(256, 256), "o_proj.weight occurs twice"),
    ],
)
def test_tensors_that_are_refused(folders, tmp_path, method, part, change, message):
    def edit(tensors):
        found = tensors.pop(f"{O}.{part}", None)
        if change is not None:
            tensors[f"{O}.{part}"] = change(found)

    refused(folders, method, tmp_path, message, tensors=edit)


def test_zeros_of_eight_bits_that_are_refused(tmp_path):
    write_folder(tmp_path, tiny_model("llama", **SIZES), Scheme("gptq", bits=8))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{O}.qzeros"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="o_proj.qzeros: expected 128 as the zero of codes of 8 bits"):
        LLM(tmp_path)


def test_eight_bits_in_other_groups_are_refused(tmp_path):
    write_folder(tmp_path, tiny_model("llama", **SIZES), Scheme("pack-quantized", 64, bits=8))
    with pytest.raises(CheckpointError, match="expected groups of a multiple of 128 columns that divide its 512"):
        LLM(tmp_path)
