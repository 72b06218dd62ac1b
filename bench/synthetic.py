"""A GGUF file with the shape of a published model and random weights: what decoding at that size costs.

    python bench/synthetic.py --shape llama-2-7b --format q4_k --output 7b.gguf
    fdpp bench --model 7b.gguf --new-tokens 16

Answers are noise. The head is Q6_K beside Q4_K, as files have it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.constants import GGML_QUANT_SIZES


@dataclass(frozen=True)
class Shape:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int


SHAPES = {
    "llama-2-7b": Shape(4096, 11008, 32, 32, 32, 32000),
    "llama-2-13b": Shape(5120, 13824, 40, 40, 40, 32000),
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, 128256),
    "tiny": Shape(256, 512, 2, 4, 2, 512),
}
#: Where a block has float16 numbers, and what they are in units of the first.
SCALES = {"q4_0": {0: 1.0}, "q8_0": {0: 1.0}, "q4_k": {0: 1.0, 2: 7.5}, "q6_k": {208: 1.0}}
#: The first: it makes values about as large as those of a trained model.
UNITS = {"q4_0": 4e-3, "q8_0": 3e-4, "q4_k": 1e-4, "q6_k": 1e-5}
HEADS = {"q4_k": "q6_k"}  # the format of the head, where it is another


def random_rows(format: str, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 ``[rows, bytes of a row]``: the same random blocks in each row."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[format.upper()]]
    blocks = rng.integers(0, 256, (columns // block, size), dtype=np.uint8)
    for place, share in SCALES[format].items():
        blocks[:, place : place + 2] = np.frombuffer(np.float16(share * UNITS[format]).tobytes(), np.uint8)
    return np.broadcast_to(blocks.reshape(1, -1), (rows, blocks.size))


def write(path: Path, shape: Shape, format: str) -> None:
    """Write the file; **replaces** one that is there."""
    writer, rng = GGUFWriter(path, "llama"), np.random.default_rng(0)
    head_dim = shape.hidden // shape.heads
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*special, *(f"word{i}" for i in range(shape.vocabulary - len(special)))])
    writer.add_token_scores([0.0] * shape.vocabulary)
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    writer.add_token_types([*kinds, *[TokenType.NORMAL] * (shape.vocabulary - len(kinds))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def matrix(name: str, rows: int, columns: int, kind: str = format) -> None:
        data = random_rows(kind, rows, columns, rng)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=GGMLQuantizationType[kind.upper()])

    def vector(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(shape.hidden, np.float32))

    kv_rows = shape.kv_heads * head_dim
    matrix("token_embd", shape.vocabulary, shape.hidden)
    matrix("output", shape.vocabulary, shape.hidden, HEADS.get(format, format))
    vector("output_norm")
    for layer in range(shape.layers):
        vector(f"blk.{layer}.attn_norm")
        vector(f"blk.{layer}.ffn_norm")
        for name, rows in (("attn_q", shape.hidden), ("attn_k", kv_rows), ("attn_v", kv_rows)):
            matrix(f"blk.{layer}.{name}", rows, shape.hidden)
        matrix(f"blk.{layer}.attn_output", shape.hidden, shape.hidden)
        for name in ("ffn_gate", "ffn_up"):
            matrix(f"blk.{layer}.{name}", shape.intermediate, shape.hidden)
        matrix(f"blk.{layer}.ffn_down", shape.hidden, shape.intermediate)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--format", choices=SCALES, default="q4_k")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    write(arguments.output, SHAPES[arguments.shape], arguments.format)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
