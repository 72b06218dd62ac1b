"""A fact that a directory states in two places or under two names: the order of transformers, or a refusal."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fdpp.checkpoints import open_checkpoint
from fdpp.errors import CheckpointError
from fdpp.llm import LLM
from fdpp.models import family_of
from tests.engine.models import VOCAB, tiny_model

IDS = torch.randint(3, VOCAB, (50,), generator=torch.Generator().manual_seed(11)).tolist()
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def edit(path: Path, name: str = "config.json", **changes: object) -> None:
    content = json.loads((path / name).read_text()) | changes
    (path / name).write_text(json.dumps({key: value for key, value in content.items() if value != "DELETE"}))


def assert_as_transformers(path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(torch.tensor([IDS]), **options)[0, len(IDS) :].tolist()
    assert LLM(path, dtype="float32").generate([IDS], max_new_tokens=8)[0].token_ids == expected


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        LLM(path, dtype="float32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", ["its own", "the embedding's", None])
@pytest.mark.parametrize("embedding", [True, False])
def test_tied_flag_and_stored_head(tmp_path, tied, head, embedding):
    tiny_model("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    if head is None:
        del tensors[HEAD]
    elif head == "the embedding's":
        tensors[HEAD] = tensors[EMBEDDING].clone()
    if not embedding:
        del tensors[EMBEDDING]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    edit(tmp_path, tie_word_embeddings=tied)
    if not embedding and not (tied and head):
        refused(tmp_path, f"tensor {EMBEDDING} is missing")
    elif head is None and not tied:
        refused(tmp_path, f"tensor {HEAD} is missing")
    else:
        assert_as_transformers(tmp_path)


def save_in_shards(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(seed))
        model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(seed))
    model.save_pretrained(path, max_shard_size="200KB")


def test_the_single_file_counts_beside_an_index(tmp_path):
    save_in_shards(tmp_path / "old", 1)
    tiny_model("llama").save_pretrained(tmp_path)
    for file in (tmp_path / "old").glob("model*"):
        shutil.copy(file, tmp_path)
    assert_as_transformers(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("damaged, and read by nobody")
    LLM(tmp_path, dtype="float32")


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    save_in_shards(tmp_path, 1)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    moved = load_file(shards[0])
    save_file(load_file(shards[1]) | moved, shards[1], metadata={"format": "pt"})
    refused(tmp_path, "occurs twice")


@pytest.mark.parametrize("architecture", ["LlamaModel", "LlamaForCausalLM", "LLaMAForCausalLM", None])
@pytest.mark.parametrize("prefix", [True, False])
def test_names_of_the_class_and_of_the_weights(tmp_path, architecture, prefix):
    """AutoModel saves a LlamaModel, whose weights have no prefix; the first conversions wrote LLaMA."""
    tiny_model("llama-tied").save_pretrained(tmp_path)
    edit(tmp_path, architectures=[architecture] if architecture else "DELETE")
    if not prefix:
        tensors = load_file(tmp_path / "model.safetensors")
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_as_transformers(tmp_path)


def test_a_tensor_with_and_without_the_prefix_is_refused(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"norm.weight": torch.ones(128)}, tmp_path / "model.safetensors")
    refused(tmp_path, "tensor 'model.norm.weight' occurs twice")


FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


@pytest.mark.parametrize(("model_type", "name"), list(itertools.product([*FAMILIES, None], FAMILIES.values())))
@pytest.mark.parametrize("ending", ["ForCausalLM", "Model"])
def test_model_type_and_architectures(model_type, name, ending):
    config = {"model_type": model_type, "architectures": [name + ending]}
    if model_type is None or FAMILIES[model_type] == name:
        assert family_of(config).name == name
    else:
        with pytest.raises(CheckpointError, match="expected one family"):
            family_of(config)


@pytest.mark.parametrize(
    "name", ["LlamaForSequenceClassification", "Qwen2MoeForCausalLM", "Model", "ForCausalLM", 5, [1]]
)
def test_classes_that_are_no_decoder(name):
    with pytest.raises(CheckpointError, match="unknown architecture"):
        family_of({"model_type": "llama", "architectures": [name]})


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize("variant", ["mistral-window", "qwen2-window"])
@pytest.mark.parametrize("kinds", [[FULL, SLIDING, FULL], [SLIDING] * 3, [FULL] * 3, [SLIDING, FULL, SLIDING]])
def test_layer_types(tmp_path, variant, kinds):
    tiny_model(variant).save_pretrained(tmp_path)
    edit(tmp_path, layer_types=kinds)
    assert_as_transformers(tmp_path)


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("mistral-window", {"sliding_window": None, "layer_types": [SLIDING] * 3}, "contradicts sliding_window"),
        ("qwen2-window", {"use_sliding_window": False, "layer_types": [SLIDING] * 3}, "contradicts sliding_window"),
        ("mistral-window", {"layer_types": [FULL] * 2}, "layer_types: expected 3 entries, got 2"),
        ("mistral-window", {"layer_types": ["chunked_attention"] * 3}, "layer_types: expected a list of"),
    ],
)
def test_layer_types_that_contradict(tmp_path, variant, changes, message):
    tiny_model(variant).save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    refused(tmp_path, message)


@pytest.mark.parametrize("config_ids", [None, 7, [7, 9]])
@pytest.mark.parametrize("generation_ids", ["no file", None, 11, [11, 13]])
def test_ends_of_a_text(tmp_path, config_ids, generation_ids):
    tiny_model("llama").save_pretrained(tmp_path)
    edit(tmp_path, eos_token_id=config_ids)
    if generation_ids == "no file":
        (tmp_path / "generation_config.json").unlink()
    else:
        edit(tmp_path, "generation_config.json", eos_token_id=generation_ids)
    counting = config_ids if generation_ids in ("no file", None) else generation_ids
    expected = set(counting) if isinstance(counting, list) else {counting} - {None}
    assert open_checkpoint(tmp_path).eos_token_ids == expected


def test_the_end_of_the_tokenizer_counts_always(checkpoints, tmp_path):
    path, _ = checkpoints("llama")
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    edit(tmp_path, "generation_config.json", eos_token_id=11)
    edit(tmp_path, "tokenizer_config.json", eos_token="<|im_end|>")
    assert open_checkpoint(tmp_path).eos_token_ids == {11, 4}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("consolidated.00.pth", "found consolidated.00.pth"),
        ("adapter_model.safetensors", "found adapter_model.safetensors"),
        (None, "expected model.safetensors or pytorch_model.bin, or an index of either"),
    ],
)
def test_other_weights_are_named(tmp_path, name, hint):
    tiny_model("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    if name:
        (tmp_path / name).touch()
    refused(tmp_path, hint)
