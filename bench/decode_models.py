"""One set of weights in the formats that the engines of bench/decode.py read."""

from __future__ import annotations

from pathlib import Path

TEXT = (
    "The history of the printing press begins long before movable type reached Europe. Woodblock printing was "
    "practised in East Asia for centuries, and the first known movable type was made of baked clay. When metal type, "
    "oil-based ink and a screw press came together in the fifteenth century, a page could be set once and printed "
    "hundreds of times. Books became cheaper, readers became more numerous, and letters, almanacs and pamphlets "
    "carried news from town to town. "
)


def prepare(model: str, dtype: str, directory: Path, stored: bool = False) -> dict[str, str | None]:
    """Make the model readable by every engine, in ``dtype``.

    Args:
        model: a GGUF file of any type, or a Hugging Face directory.
        directory: an empty directory for what has to be written.
        stored: fdpp and llama.cpp read the GGUF file as it is.

    Returns:
        ``directory``: a Hugging Face directory; ``gguf``: a GGUF file, None when the model came as a directory;
        ``fdpp``: the one of them that fdpp reads.
    """
    path = Path(model)
    if path.is_dir():
        return {"directory": str(path), "gguf": None, "fdpp": str(path)}
    print(f"writing {path.name} as a Hugging Face directory{'' if stored else ' and as GGUF'}, in {dtype}", flush=True)
    folder = directory / "model"
    write_directory(path, folder, dtype)
    if stored:
        return {"directory": str(folder), "gguf": str(path), "fdpp": str(path)}
    write_gguf(path, directory / "model.gguf", dtype)
    return {"directory": str(folder), "gguf": str(directory / "model.gguf"), "fdpp": str(folder)}


def write_gguf(source: Path, target: Path, dtype: str) -> None:
    """Copy a GGUF file with its matrices in ``dtype`` and its vectors in float32; the metadata stays."""
    import gguf

    matrix_type = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[dtype]
    quantisation = gguf.GGMLQuantizationType[matrix_type]
    file_type = gguf.LlamaFileType["ALL_F32" if dtype == "float32" else f"MOSTLY_{matrix_type}"]
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    generated = {"general.architecture", "general.file_type", "general.quantization_version"}
    for field in reader.fields.values():
        if field.name not in generated and not field.name.startswith("GGUF."):
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    writer.add_file_type(file_type)
    for tensor in reader.tensors:
        data = gguf.dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) > 1:
            writer.add_tensor(tensor.name, gguf.quantize(data, quantisation), raw_dtype=quantisation)
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_directory(source: Path, target: Path, dtype: str) -> None:
    """Write a GGUF file's model as a Hugging Face directory: config, safetensors and tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    # AutoModelForCausalLM.from_pretrained(gguf_file=...) would do this too, but asks for accelerate.
    tensors = load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=model)["tensors"]
    outcome = model.load_state_dict(tensors, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if outcome.unexpected_keys or set(outcome.missing_keys) - tied:
        raise ValueError(f"{source}: missing {outcome.missing_keys}, unexpected {outcome.unexpected_keys}")
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)


def prompt_ids(directory: str, count: int, length: int) -> list[list[int]]:
    """``count`` different prompts of ``length`` tokens of plain text."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(directory)(TEXT, add_special_tokens=False)["input_ids"]
    ids = ids * ((count + length) // len(ids) + 2)
    return [ids[start : start + length] for start in range(count)]
