"""The parts of the benches that decide and compute."""

from __future__ import annotations

import decode
import decode_models
import harness
import linear
import pytest


def test_inflections():
    def times(a, b, c):
        return {
            name: dict(zip((1, 2, 4, 8), values, strict=True)) for name, values in zip("ABC", (a, b, c), strict=True)
        }

    assert linear.inflections(times([1, 2, 4, 8], [3, 1, 1, 9], [5, 5, 5, 5])) == (2, 8)
    assert linear.inflections(times([1, 1, 1, 1], [3, 3, 3, 3], [5, 5, 5, 5])) == (None, None)
    assert linear.inflections(times([3, 3, 3, 3], [1, 1, 1, 1], [0, 2, 2, 2])) == (1, 1)
    assert linear.inflections(times([3, 4, 5, 6], [4, 3, 3, None], [9, 9, 9, 9])) == (2, 8)  # B serves few rows only


def linear_row(K: int, N: int, M: int, a: float, b: float | None, c: float, fdpp: float) -> dict:
    """A row of bench/linear.py whose bandwidth bound is 1 us."""
    row = {"dtype": "float16", "K": K, "N": N, "M": M, "regret": fdpp / min(x for x in (a, b, c) if x) - 1}
    for name, time in zip(linear.STYLE, (a, b, c, fdpp), strict=True):
        row |= {f"{name} us": time, f"{name} share": time and 1 / time, f"{name} x torch": time and c / time}
    return row


def test_summary_of_linear_layers():
    summary = linear.summarise([
        linear_row(4096, 4096, 1, a=2, b=4, c=8, fdpp=2),
        linear_row(4096, 4096, 16, a=16, b=4, c=8, fdpp=4),
        linear_row(4096, 4096, 64, a=64, b=8, c=4, fdpp=4),  # beyond the paper's M
        linear_row(4096, 4096, 96, a=96, b=None, c=4, fdpp=5),  # and beyond those of flat_gemm
        linear_row(576, 576, 1, a=1, b=2, c=3, fdpp=1),  # no shape of the paper
    ])  # fmt: skip
    assert summary == {
        "dtype": "float16",
        "least share": 0.25,
        "median share": 0.375,
        "x torch": pytest.approx(8**0.5),
        "least x torch": 2.0,
        "regret": 0.25,
        "x one impl": pytest.approx(128 ** (1 / 3) / 32 ** (1 / 3)),  # B alone: 4, 4, 8
    }


def test_summary_without_the_shapes_it_is_about():
    summary = linear.summarise([linear_row(576, 576, 1, a=1, b=2, c=3, fdpp=1)])
    assert summary.pop("dtype") == "float16" and summary.pop("regret") == 0
    assert set(summary.values()) == {None}


def test_common_prefix():
    assert decode.common_prefix([[1, 2, 3, 4]], [[1, 2, 9, 4]]) == 0.5
    assert decode.common_prefix([[1, 2], [3, 4]], [[1, 2], [3, 4]]) == 1.0
    assert decode.common_prefix([[1, 2], [3, 4]], [[1, 2], [9, 4]]) == 0.5


def test_summary_of_rounds():
    def answer(rate):
        result = {"context": 32, "batch": 2, "tokens": [[1], [1]], "bytes_per_step": 10}
        result |= {"tokens_per_second": rate, "prompt_tokens_per_second": 3 * rate}
        return {"version": "1", "results": [result], "read_bandwidth": 0}

    answers = {
        "fdpp": [answer(8.0), answer(20.0), answer(10.0)],
        "transformers": [answer(5.0), answer(4.0), answer(6.0)],
    }
    ours, theirs = decode.summarise(answers, bandwidth=100.0)
    assert (ours["tokens/s"], ours["min"], ours["max"], ours["of bound"]) == (10.0, 8.0, 20.0, 0.5)
    assert (ours["context"], ours["batch"], ours["prompt tokens/s"]) == (32, 2, 30.0)
    assert (theirs["tokens/s"], theirs["fdpp is x"], theirs["engine"]) == (5.0, 2.0, "transformers 1")


def test_table(capsys):
    harness.print_table([{"name": "a", "x": 1.25}, {"name": "long", "x": None}], {"name": "s", "x": ".1f"})
    assert capsys.readouterr().out.splitlines() == ["name    x", "   a  1.2", "long    -"]


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", "BF16"), ("float32", "F32"), ("float16", "F16")])
def test_gguf_copy_keeps_metadata_and_values(tmp_path, dtype, stored):
    gguf = pytest.importorskip("gguf")
    np = pytest.importorskip("numpy")
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_block_count(3)
    writer.add_array("some.words", ["a", "b"])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_bool("some.flag", False)
    matrix = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    q8 = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("matrix", gguf.quantize(matrix, q8), raw_dtype=q8)
    writer.add_tensor("vector", matrix[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    decode_models.write_gguf(source, target, dtype)
    old, new = gguf.GGUFReader(source), gguf.GGUFReader(target)
    kept = {name for name in old.fields if not name.startswith("GGUF.")}
    assert kept <= set(new.fields)
    assert all(old.fields[name].contents() == new.fields[name].contents() for name in kept)
    types = {tensor.name: tensor.tensor_type.name for tensor in new.tensors}
    assert types == {"matrix": stored, "vector": "F32"}
    values = [gguf.dequantize(file.tensors[0].data, file.tensors[0].tensor_type) for file in (old, new)]
    np.testing.assert_allclose(values[1], values[0], rtol=2**-7)
