"""Damaged and hostile checkpoints: they load, or they raise a CheckpointError of one line. Nothing else, and soon."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import shutil
import signal
import struct
import warnings
from pathlib import Path

import gguf
import pytest
import torch

from fdpp.errors import CheckpointError, FdppError
from fdpp.llm import LLM
from tests.engine.gguf_writer import write_gguf
from tests.engine.models import tiny_gguf_tokenizer, tiny_model

SECONDS_PER_CASE = 30
EXTRA_MEMORY = 4 << 30


VALUES = [
    None,
    True,
    -1,
    0,
    1,
    7,
    1 << 31,
    1 << 70,
    0.5,
    -1.5,
    1e400,
    float("nan"),
    "",
    "8",
    [],
    [1],
    {},
    {"a": 1},
    64.0,
]


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory():
    """An allocation that a header invents fails at once, as something other than a CheckpointError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + EXTRA_MEMORY, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@contextlib.contextmanager
def _deadline(what: object):
    def expired(*_):
        raise TimeoutError(f"still busy after {SECONDS_PER_CASE} s: {what}")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.alarm(SECONDS_PER_CASE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def outcome(path: Path, what: object = "") -> str | None:
    """The message of the error that loading raises, None when the model works. Other exceptions pass through."""
    with _deadline(what), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            llm = LLM(path, dtype="float32")
        except CheckpointError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, what
            return str(error)
        with contextlib.suppress(FdppError):  # finite weights may still be absurd
            llm.generate([5 % llm.model.vocab_size, 0], max_new_tokens=2)
            llm.generate("the end", max_new_tokens=2)
    return None


def refused(path: Path, message: str) -> None:
    found = outcome(path)
    assert found is not None and message in found, found


@pytest.fixture(scope="module")
def good_gguf(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, tiny_model("llama"), gguf.GGMLQuantizationType.Q8_0, tiny_gguf_tokenizer())
    assert outcome(path) is None
    return path


@pytest.fixture
def directory(checkpoints, tmp_path) -> Path:
    path, model = checkpoints("llama")
    model.save_pretrained(tmp_path)
    assert outcome(tmp_path) is None
    return tmp_path


def edit_json(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value != "DELETE"}))


def mutations(data: bytes, header: int, count: int, seed: int):
    """Truncations, flipped bytes and overwritten integers, most of them in the header."""
    rng = random.Random(seed)
    extremes = [0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
    for _ in range(count):
        kind = rng.choice(["truncate", "flip", "flip", "integer", "integer", "remove", "insert"])
        at = rng.randrange(header if rng.random() < 0.8 else len(data))
        mutated = bytearray(data)
        if kind == "truncate":
            del mutated[at:]
        elif kind == "flip":
            for _ in range(rng.randrange(1, 5)):
                mutated[min(at + rng.randrange(16), len(data) - 1)] = rng.randrange(256)
        elif kind == "integer":
            mutated[at : at + 8] = struct.pack("<Q", rng.choice(extremes))
        elif kind == "remove":
            del mutated[at : at + rng.randrange(1, 64)]
        else:
            mutated[at:at] = rng.randbytes(rng.randrange(1, 64))
        yield (kind, at, seed), bytes(mutated)


@pytest.mark.parametrize("seed", range(4))
def test_fuzzed_gguf(good_gguf, tmp_path, seed):
    data = good_gguf.read_bytes()
    header = min(tensor.data_offset for tensor in gguf.GGUFReader(good_gguf).tensors)
    for what, mutated in mutations(data, header, 80, seed):
        (tmp_path / "model.gguf").write_bytes(mutated)
        outcome(tmp_path / "model.gguf", what)


@pytest.mark.parametrize("seed", range(2))
def test_fuzzed_safetensors(directory, seed):
    data = (directory / "model.safetensors").read_bytes()
    for what, mutated in mutations(data, 8 + struct.unpack("<Q", data[:8])[0], 100, seed):
        (directory / "model.safetensors").write_bytes(mutated)
        outcome(directory, what)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_fuzzed_json(checkpoints, tmp_path, name):
    path, model = checkpoints("llama")
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    data = (tmp_path / name).read_bytes()
    for what, mutated in mutations(data, len(data), 40, len(name)):
        (tmp_path / name).write_bytes(mutated)
        outcome(tmp_path, what)


def wrong_values(content: object, count: int, seed: int):
    """The JSON with one value after the other replaced by another one, or taken out."""
    rng = random.Random(seed)
    text = json.dumps(content)
    for _ in range(count):
        root = json.loads(text)
        node, trail = root, []
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = rng.choice(list(keys))
            trail.append(key)
            if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.3:
                break
            node = node[key]
        value = rng.choice([*VALUES, "DELETE"])
        if value == "DELETE":
            del node[key]
        else:
            node[key] = value
        yield (trail, value), json.dumps(root)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_json_with_wrong_values(checkpoints, tmp_path, name):
    path, _ = checkpoints("llama")
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    for what, mutated in wrong_values(json.loads((tmp_path / name).read_text()), 60, len(name)):
        (tmp_path / name).write_text(mutated)
        outcome(tmp_path, what)


def test_every_truncation_of_a_gguf_header(good_gguf, tmp_path):
    from fdpp.checkpoints.gguf_file import GGUFFile

    data = good_gguf.read_bytes()
    end = min(tensor.data_offset for tensor in gguf.GGUFReader(good_gguf).tensors)
    for length in [*range(0, 64), *range(64, end, 97), len(data) - 1]:
        (tmp_path / "model.gguf").write_bytes(data[:length])
        with _deadline(length), pytest.raises(CheckpointError):
            GGUFFile(tmp_path / "model.gguf")


@pytest.mark.parametrize("offset", [8, 16])
@pytest.mark.parametrize("count", [1 << 16, (1 << 16) + 1, 1 << 40, (1 << 64) - 1])
def test_absurd_counts(good_gguf, tmp_path, offset, count):
    data = bytearray(good_gguf.read_bytes())
    data[offset : offset + 8] = struct.pack("<Q", count)
    (tmp_path / "model.gguf").write_bytes(data)
    assert outcome(tmp_path / "model.gguf", count) is not None


KEYS = [
    "architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim",
    "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "rope_parameters",
    "rope_theta", "rope_scaling", "attention_bias", "mlp_bias", "tie_word_embeddings", "hidden_act", "eos_token_id",
    "sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "quantization_config",
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_every_value_of_every_key(directory, key):
    for architecture in ("LlamaForCausalLM", "Qwen2ForCausalLM"):
        for value in [*VALUES, "DELETE"]:
            original = (directory / "config.json").read_text()
            edit_json(directory / "config.json", **({"architectures": [architecture]} | {key: value}))
            outcome(directory, (key, value))
            (directory / "config.json").write_text(original)


GGUF_VALUES = [True, -1, 0, 1, 7, 1 << 31, 0.5, float("inf"), float("nan"), "", "8", [1, 2], ["a", "b"], [0.5], 64.0]


def test_every_value_of_every_metadata_key(good_gguf, tmp_path):
    from fdpp.checkpoints.gguf import GGUFCheckpoint
    from fdpp.checkpoints.gguf_file import GGUFFile

    good = GGUFFile(good_gguf)
    keys = [*good.metadata, "split.count", "llama.attention.sliding_window", "tokenizer.ggml.add_bos_token",
            "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.scores", "tokenizer.ggml.unknown_token_id",
            "llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear"]  # fmt: skip
    for key in keys:
        for value in [*GGUF_VALUES, "DELETE"]:
            changed = dict(good.metadata) | {key: value}
            if value == "DELETE":
                del changed[key]
            with contextlib.suppress(CheckpointError), warnings.catch_warnings(), _deadline((key, value)):
                warnings.simplefilter("ignore")
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("fdpp.checkpoints.gguf_file._read_header", lambda _, m=changed: (m, good.tensors))
                    GGUFCheckpoint(good_gguf)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "unknown architecture 'GPT2LMHeadModel'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"num_hidden_layers": 10**9}, "num_layers"),
        ({"num_hidden_layers": 4}, "model.layers.3.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 2}, "tensors that this architecture does not have"),
        ({"hidden_size": 1 << 17}, "embed_tokens.weight: expected shape (300, 131072), got (300, 128)"),
        ({"head_dim": 72}, "head_dim"),
        ({"num_key_value_heads": 3}, "num_heads: expected a multiple of num_kv_heads 3, got 4"),
        ({"rope_parameters": {"rope_type": "mrope", "factor": 2.0}}, "rope_type"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope factor"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"attention_bias": True}, "q_proj.bias is missing"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"max_position_embeddings": 0}, "max_positions"),
    ],
)
def test_what_is_wrong_is_said(directory, changes, message):
    edit_json(directory / "config.json", **changes)
    refused(directory, message)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000]
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_json_that_is_none(directory, name, content):
    if name == "model.safetensors.index.json":  # read where there is no single file only
        (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(content)
    assert outcome(directory) is not None


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        {},
        [],
        {"a": 3},
        {"a": "../model.safetensors"},
        {"a": "/etc/passwd"},
        {"a": "sub/model.safetensors"},
        {"a": "..\\model.safetensors"},
        {"a": ".."},
        {"a": "\x00.safetensors"},
        {"a": "missing.safetensors"},
    ],
    ids=repr,
)
def test_shards_stay_inside_the_directory(directory, weight_map):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert outcome(directory) is not None


def test_weights_with_nan(directory):
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, directory / "model.safetensors")
    refused(directory, "not all values are finite")


def test_weights_beyond_the_memory(directory, monkeypatch):
    monkeypatch.setattr("fdpp.checkpoints.loading.memory_bytes", lambda device: 1000)
    refused(directory, "the weights need")


def test_integers_are_no_weights(directory):
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int32)
    save_file(tensors, directory / "model.safetensors")
    refused(directory, "expected a dtype")


@pytest.mark.parametrize("name", ["no/such/model/here", "./missing", "missing.gguf", "owner/missing.gguf", "", "a b/c"])
def test_no_such_model(name, monkeypatch):
    monkeypatch.chdir("/")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(Path(name) if name == "./missing" else name, "no such file" if name else "config.json")


def test_the_hub_without_a_network(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("fdpp-tests/no-such-model", "cannot be downloaded")


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "model.gguf").write_text("hello, this is text")
    refused(tmp_path / "model.gguf", "not a GGUF file")
    (tmp_path / "empty.gguf").touch()
    refused(tmp_path / "empty.gguf", "empty")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "wordpiece"}, "tokenizer.ggml.model"),
        ({"tokenizer.ggml.pre": "no-such"}, "tokenizer.ggml.pre"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": [1, 2]}, "cannot be built"),
        ({"tokenizer.ggml.merges": ["no such"]}, "cannot be built"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "cannot be built"),
        ({"tokenizer.ggml.bos_token_id": 1 << 20, "tokenizer.ggml.add_bos_token": True}, "bos_token_id"),
        ({"tokenizer.ggml.eos_token_id": -5, "tokenizer.ggml.add_eos_token": True}, "eos_token_id"),
        ({"tokenizer.ggml.padding_token_id": 1.5}, "padding_token_id: expected an integer"),
        ({"tokenizer.ggml.add_bos_token": 2}, "add_bos_token"),
        ({"tokenizer.ggml.tokens": ["a", "b", "a"]}, "tokens: 'a' occurs twice"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores"),
        ({"tokenizer.chat_template": 5}, "chat_template"),
        ({"tokenizer.ggml.token_type": 5}, "token_type"),
    ],
)
def test_bad_tokenizer_metadata(tmp_path, changes, message):
    write_gguf(tmp_path / "model.gguf", tiny_model("llama"), metadata=tiny_gguf_tokenizer() | changes)
    refused(tmp_path / "model.gguf", message)
