"""``fdpp quantize``: what it writes, read again by fdpp and by the gguf package's dequantisers."""

from __future__ import annotations

import os
import shutil

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file

from fdpp.checkpoints import open_checkpoint
from fdpp.checkpoints.gguf_file import GGUFFile
from fdpp.checkpoints.gguf_writer import NewTensor, storage_type
from fdpp.errors import RequestError
from fdpp.export import export
from fdpp.file_formats import FILE_FORMATS
from fdpp.llm import LLM
from tests.engine import models
from tests.engine.folder_writer import Scheme, edit_config, write_folder
from tests.engine.gguf_writer import write_gguf
from tests.engine.helpers import assert_logits_close, forced_logits, reference_logits
from tests.engine.scaled_folder_writer import Scaled, write_scaled_folder
from tests.engine.test_family_files import chatglm_checkpoint

IDS = torch.randint(3, models.VOCAB, (40,), generator=torch.Generator().manual_seed(3)).tolist()
#: Weights as small as those of trained models: larger ones make attention choose one key or another by a rounding.
MILD = {"initializer_range": 0.05}
#: Of the largest logit, with weights of 8 bits: measured 1.3 %.
EIGHT_BITS = 0.03


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama with grouped queries, and its model of transformers; rows of every matrix are whole blocks."""
    path, model = tmp_path_factory.mktemp("folder"), models.tiny_model("llama")
    model.save_pretrained(path)
    models.tiny_tokenizer().save_pretrained(path)
    return path, model


@pytest.fixture
def quantize(fdpp, tmp_path):
    """Run the command, and give the file that it wrote."""

    def run(model, format, *options, output=None):
        path = output or tmp_path / "out.gguf"
        outcome = fdpp("quantize", "--model", model, "--format", format, "--output", path, *options)
        assert outcome.code == 0, outcome.err
        assert outcome.out.splitlines()[0] == str(path)
        return path, outcome

    return run


def logits(path, **options):
    return forced_logits(LLM(path, dtype="float32", **options), [IDS], [30], None)[0]


@pytest.mark.parametrize("format", FILE_FORMATS)
def test_every_format(folder, quantize, format):
    """What fdpp reads is what the package makes of the bytes, and these are its quantisation of the values."""
    path, _ = quantize(folder[0], format)
    file, read, source = GGUFFile(path), open_checkpoint(path), open_checkpoint(folder[0])
    assert file.metadata["general.file_type"] == gguf.LlamaFileType[FILE_FORMATS[format]]
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert len(tensors) == len(source.shapes) == len(read.shapes)
    for name, shape in source.shapes.items():
        values, own = torch.empty(shape), torch.empty(shape)
        read.read_into(name, values)
        source.read_into(name, own)
        kind = storage_type(NewTensor(shape, own.numpy, name == "lm_head.weight"), format)
        expected = gguf.quants.dequantize(gguf.quants.quantize(own.numpy(), kind), kind)
        np.testing.assert_array_equal(values.numpy(), expected, name)
    for stored, tensor in tensors.items():
        whole = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(file.tensors[stored].shape)
        rows = file.rows(stored, 0, file.tensors[stored].rows)
        np.testing.assert_array_equal(rows, whole.reshape(rows.shape), stored)
    LLM(path).generate([IDS[:5]], max_new_tokens=2)


def test_f32_gives_the_same_tokens(folder, quantize):
    exact, _ = quantize(folder[0], "f32")
    options = {"max_new_tokens": 40, "ignore_eos": True}
    texts = [LLM(where, dtype="float32").generate([IDS], **options)[0].token_ids for where in (folder[0], exact)]
    assert texts[0] == texts[1]


def test_q8_0_gives_nearly_the_same_logits(quantize, tmp_path):
    model = models.tiny_model("llama", **MILD)
    model.save_pretrained(tmp_path / "model")
    small, outcome = quantize(tmp_path / "model", "q8_0")
    assert_logits_close(logits(small), reference_logits(model, IDS)[29:], EIGHT_BITS)
    assert "tensors  23 q8_0, 7 f32" in outcome.out and "others" not in outcome.out and outcome.err == ""


VARIANTS = [
    "llama-tied", "llama-biased", "llama3-rope", "linear-rope", "yarn-rope", "longrope", "mistral-full", "qwen3",
    "qwen3-wide", "gpt-neox", "gpt-neox-serial", "bloom", "mpt", "falcon", "falcon-groups", "starcoder2", "stablelm",
    "stablelm-parallel", "phi3", "phi4-mini", "granite", "olmo2", "glm", "glm4", "gemma2-llama.cpp",
    "gemma3-llama.cpp", "smollm3-llama.cpp", "qwen2",
]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_families(tmp_path, variant):
    """Without a tokenizer, so that transformers adds none of a family's own tokens."""
    model = models.tiny_model(variant)
    model.save_pretrained(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "out.gguf", "f32")
    assert_logits_close(logits(tmp_path / "out.gguf"), reference_logits(model, IDS)[29:])


def test_chatglm(tmp_path):
    (tmp_path / "model").mkdir()
    model = models.tiny_model("glm")
    chatglm_checkpoint(tmp_path / "model", model)
    export(tmp_path / "model", tmp_path / "out.gguf", "f32")
    assert_logits_close(logits(tmp_path / "out.gguf"), reference_logits(model, IDS)[29:])


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("mistral-window", "blocks.0.attention.window 10 would be read as -1"),
        ("qwen2-window", "blocks.1.attention.window 8 would be read as -1"),
        ("dynamic-rope", "blocks.0.attention.rotary.scaling.factor 4.0 would be read as None"),
        ("gemma2", "blocks.0.attention.softmax_scale 0.158"),
        ("smollm3", "blocks.1.attention.rotary.head_dim 0 would be read as 64"),
        ("falcon-rw", "post_attention_layernorm.weight: the architecture 'falcon' of GGUF has no place for it"),
        ("opt", "model_type: expected one with an architecture of GGUF (bloom, chatglm, falcon, gemma2"),
        ("ministral", "smollm3, stablelm, starcoder2), got 'ministral'"),
    ],
)
def test_models_that_a_file_cannot_hold(fdpp, tmp_path, variant, message):
    models.tiny_model(variant).save_pretrained(tmp_path / "model")
    refused(fdpp, tmp_path, message)


def refused(fdpp, tmp_path, message, *options, model="model", format="q4_0", output="out.gguf"):
    """One line says so, and nothing is left behind."""
    before = sorted(os.listdir(tmp_path))
    outcome = fdpp(
        *("quantize", "--model", tmp_path / model, "--format", format, "--output", tmp_path / output, *options)
    )
    assert (outcome.code, outcome.out) == (2, "")
    lines = [line for line in outcome.err.splitlines() if line.startswith("fdpp: ")]
    assert len(lines) == 1 and message in lines[0] and len(lines[0]) < 500
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("shape", "is_head", "format", "kind"),
    [
        ((64,), False, "q4_0", Kind.F32),
        ((64,), False, "f16", Kind.F32),
        ((8, 64), False, "q4_0", Kind.Q4_0),
        ((8, 64), True, "q4_0", Kind.Q8_0),
        ((8, 64), True, "mxfp4", Kind.Q8_0),
        ((8, 64), True, "bf16", Kind.BF16),
        ((8, 48), False, "q4_0", Kind.F16),
        ((8, 48), True, "q8_0", Kind.F16),
        ((8, 48), True, "f32", Kind.F32),
        ((8, 48), False, "bf16", Kind.BF16),
    ],
)
def test_storage_types(shape, is_head, format, kind):
    assert storage_type(NewTensor(shape, lambda: np.zeros(shape), is_head), format) == kind


def test_rows_that_are_no_whole_blocks(quantize, tmp_path):
    models.tiny_model("llama-tied", intermediate_size=200).save_pretrained(tmp_path / "model")
    path, outcome = quantize(tmp_path / "model", "q5_1")
    kinds = {name: info.kind for name, info in GGUFFile(path).tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == Kind.F16 and kinds["blk.0.ffn_up.weight"] == Kind.Q5_1
    assert kinds["token_embd.weight"] == Kind.Q8_0 and kinds["blk.0.attn_norm.weight"] == Kind.F32
    assert "tensors  18 q5_1, 7 f32, 3 f16, 1 q8_0" in outcome.out
    assert "others   3 f16 (rows that are no whole number of blocks), 1 q8_0 (the head)" in outcome.out
    LLM(path)


def test_a_gguf_file_keeps_what_it_says(quantize, tmp_path):
    """Metadata keep their types and bytes, also of texts that are no UTF-8; what is stored as vectors stays."""
    more = {
        "llama.strange": b"\xff\xfe",
        "llama.list": [1.5, 2.5],
        "general.alignment": 32,
        "quantize.imatrix.file": "y",
    }
    tokens = models.tiny_gguf_tokenizer()
    tokens["tokenizer.ggml.tokens"] = [*(t.encode() for t in tokens["tokenizer.ggml.tokens"][:-1]), b"\xc3"]
    model = models.tiny_model("llama3-rope", **MILD)
    write_gguf(tmp_path / "in.gguf", model, Kind.Q4_1, tokens | more)
    path, outcome = quantize(tmp_path / "in.gguf", "q8_0")
    assert "fdpp: note: 23 tensors of the model were quantised already" in outcome.err
    before, after = GGUFFile(tmp_path / "in.gguf").pairs(), GGUFFile(path).pairs()
    dropped = {"general.alignment", "quantize.imatrix.file"}
    assert after.keys() - before.keys() == {"general.file_type", "general.quantization_version"}
    assert before.keys() - after.keys() == dropped
    assert all(after[key] == before[key] for key in before.keys() - dropped)
    assert GGUFFile(path).tensors["rope_freqs.weight"].kind == Kind.F32
    assert_logits_close(logits(path), reference_logits(model, IDS)[29:], EIGHT_BITS)
    assert LLM(path).tokenizer.encode("the end") == models.tiny_tokenizer().encode("the end")


@pytest.mark.parametrize(
    ("write", "scheme"),
    [(write_folder, Scheme("gptq")), (write_scaled_folder, Scaled("fp8", "block"))],
    ids=["gptq", "fp8"],
)
def test_a_directory_that_is_quantised_already(quantize, tmp_path, write, scheme):
    model = models.tiny_model("llama", hidden_size=256, intermediate_size=512)
    write(tmp_path / "model", model, scheme)
    path, outcome = quantize(tmp_path / "model", "f32")
    assert "note: 21 tensors of the model were quantised already" in outcome.err
    assert_logits_close(logits(path), reference_logits(model, IDS)[29:])


def test_an_output_that_exists(fdpp, folder, quantize, tmp_path):
    path, _ = quantize(folder[0], "q8_0")
    before = path.read_bytes()
    shutil.copytree(folder[0], tmp_path / "model")
    refused(fdpp, tmp_path, "out.gguf: exists; expected the name of a new file, or --force")
    assert path.read_bytes() == before
    quantize(path, "q4_0", "--force")  # over the very file that is read
    assert GGUFFile(path).tensors["blk.0.attn_q.weight"].kind == Kind.Q4_0


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("none/out.gguf", (), "there is no directory"),
        ("model", ("--force",), "exists; expected the name of a file"),
    ],
)
def test_outputs_that_are_refused(fdpp, folder, tmp_path, output, options, message):
    shutil.copytree(folder[0], tmp_path / "model")
    refused(fdpp, tmp_path, message, *options, output=output)


def test_a_format_that_is_none(fdpp, folder, tmp_path):
    outcome = fdpp("quantize", "--model", folder[0], "--format", "q4_k", "--output", tmp_path / "out.gguf")
    assert outcome.code == 2 and "invalid choice: 'q4_k'" in outcome.err
    with pytest.raises(RequestError, match="format: expected one of f32, f16, bf16"):
        export(folder[0], tmp_path / "out.gguf", "q4_k")


@pytest.mark.parametrize(
    ("value", "format", "message"),
    [
        (float("nan"), "f32", "o_proj.weight"),
        (float("inf"), "bf16", "expected values within +-3.38953e+38 for BF16"),
        (-float("inf"), "f32", "expected values within +-3.40282e+38 for F32"),
        (7e4, "f16", "expected values within +-65504 for F16"),
        (-7e4, "q4_1", "expected values within +-65504 for Q4_1"),
    ],
)
def test_values_that_cannot_be_stored(fdpp, folder, tmp_path, value, format, message):
    """Found while the file is being written: nothing of it stays."""
    shutil.copytree(folder[0], tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.2.self_attn.o_proj.weight"][3, 5] = value
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    refused(fdpp, tmp_path, message if value == value else "blk.2.attn_output.weight: expected values", format=format)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(KeyboardInterrupt(), 130, ""), (OSError(28, "No space left on device"), 2, "No space left on device")],
    ids=["interrupt", "full disk"],
)
def test_writing_that_ends_early(fdpp, folder, tmp_path, monkeypatch, error, code, message):
    """The file that was there stays, and no other."""
    (tmp_path / "out.gguf").write_text("before")

    def encoded(*arguments):
        raise error

    monkeypatch.setattr("fdpp.checkpoints.gguf_writer._encoded", encoded)
    outcome = fdpp(
        *("quantize", "--model", folder[0], "--format", "q8_0", "--output", tmp_path / "out.gguf", "--force")
    )
    assert outcome.code == code and message in outcome.err
    assert os.listdir(tmp_path) == ["out.gguf"] and (tmp_path / "out.gguf").read_text() == "before"


def test_models_that_cannot_be_read(fdpp, folder, tmp_path):
    refused(fdpp, tmp_path, "no such file or directory", model="nowhere")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03\0\0\0")
    refused(fdpp, tmp_path, "truncated", model="bad.gguf")
    shutil.copytree(folder[0], tmp_path / "model")
    edit_config(tmp_path / "model", {"num_hidden_layers": 7})
    refused(fdpp, tmp_path, "tensor model.layers.3.")
