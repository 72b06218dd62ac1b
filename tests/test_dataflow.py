"""The dataflow table: files good and bad, the look-up, the rule, and the tuner."""

from __future__ import annotations

import warnings

import pytest
import torch

from fdpp import dataflow, library, ops, tuning

DEVICE = library.load().device_name()
HEADER = ",".join(dataflow.COLUMNS)


@pytest.fixture
def user_table(tmp_path, monkeypatch):
    """An empty place for the user's table; afterwards the shipped tables are in force again."""
    path = tmp_path / "table.csv"
    monkeypatch.setenv("FDPP_DATAFLOW_TABLE", str(path))
    yield path
    monkeypatch.delenv("FDPP_DATAFLOW_TABLE")
    dataflow.install()


def row(**changes) -> dataflow.Row:
    values = dict(
        device=DEVICE, dtype="float32", N=72, K=48, M=4, impl="flat_gemm", config=1,
        microseconds=10.0, gbps=1.0, ratio_to_aten=1.5, error=1e-7,
    )  # fmt: skip
    return dataflow.Row(**(values | changes))


def choice(M: int, N: int = 72, K: int = 48, dtype: str = "float32") -> tuple[str, int, str]:
    found = library.load().choice(dtype, N, K, M)
    return found["impl"], found["config"], found["source"]


def test_a_table_survives_writing_and_reading(tmp_path):
    rows = [row(), row(M=8, impl="aten", config=-1), row(dtype="bfloat16", impl="gemv", config=-1)]
    dataflow.write_table(tmp_path / "t.csv", rows, "a comment\nof two lines")
    assert sorted(dataflow.read_table(tmp_path / "t.csv"), key=lambda r: r.key) == sorted(rows, key=lambda r: r.key)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_the_user_table_decides_between_its_rows_and_the_rule_beyond(user_table):
    rows = [row(M=1, impl="aten", config=-1), row(M=4, config=0), row(M=8, impl="gemv", config=-1)]
    dataflow.write_table(user_table, rows, "")
    dataflow.install()
    assert choice(1) == ("aten", -1, "table")
    assert [choice(M) for M in (2, 3, 4)] == [("flat_gemm", 0, "table")] * 3
    assert choice(8) == ("gemv", -1, "table")
    assert choice(9)[2] == choice(4, N=73)[2] == choice(4, dtype="bfloat16")[2] == "rule"
    assert "your table" in dataflow.explain(72, 48, 3, "float32") and "M=4" in dataflow.explain(72, 48, 3, "float32")
    assert "by rule" in dataflow.explain(73, 48, 3, "float32")


def test_rows_of_another_device_do_not_count(user_table):
    dataflow.write_table(user_table, [row(device="another-1-2-avx9", impl="aten", config=-1)], "")
    dataflow.install()
    assert choice(4)[2] == "rule"


def test_every_implementation_gives_the_product(user_table):
    rows = [
        row(M=1, impl="gemv", config=-1),
        row(M=4, config=0),
        row(M=8, config=-1),
        row(M=16, impl="aten", config=-1),
    ]
    dataflow.write_table(user_table, rows, "")
    dataflow.install()
    weight = torch.randn(72, 48)
    for M in (1, 3, 7, 11, 40):
        x = torch.randn(M, 48)
        torch.testing.assert_close(ops.linear(x, weight), x @ weight.T, rtol=1e-5, atol=1e-5)


GOOD = f"{DEVICE},float32,72,48,4,flat_gemm,1,10.0,1.0,1.5,1e-07,"
BAD_TABLES = {
    "empty": "",
    "no header": GOOD,
    "too few columns": f"{HEADER}\n{GOOD.rsplit(',', 2)[0]}",
    "no number": f"{HEADER}\n{GOOD.replace('72', 'many')}",
    "negative size": f"{HEADER}\n{GOOD.replace('72', '-72')}",
    "huge size": f"{HEADER}\n{GOOD.replace('72', '9' * 30)}",
    "unknown dtype": f"{HEADER}\n{GOOD.replace('float32', 'float8')}",
    "unknown implementation": f"{HEADER}\n{GOOD.replace('flat_gemm', 'magic')}",
    "unknown configuration": f"{HEADER}\n{GOOD.replace(',1,10.0', ',99,10.0')}",
    "flat GEMM of many rows": f"{HEADER}\n{GOOD.replace(',4,flat', ',65,flat')}",
    "a configuration without flat GEMM": f"{HEADER}\n{GOOD.replace('flat_gemm', 'gemv')}",
    "a time that is no number": f"{HEADER}\n{GOOD.replace('10.0', 'nan')}",
    "a negative error": f"{HEADER}\n{GOOD.replace('1e-07', '-1')}",
    "unknown format": f"{HEADER}\n{GOOD}q9",
    "a configuration that a format does not have": f"{HEADER}\n{GOOD}q4_0",
    "binary": "\x00\xff\x01" * 50,
}


@pytest.mark.parametrize("text", BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_bad_table_is_left_out_with_a_warning(user_table, text):
    user_table.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"table\.csv"):
        dataflow.read_table(user_table)
    with pytest.warns(UserWarning, match="left out"):
        dataflow.install()
    assert choice(4)[2] == "rule"


def test_a_truncated_table_is_left_out_or_shorter_never_wrong(user_table):
    dataflow.write_table(user_table, [row(M=M) for M in range(1, 9)], "")
    whole = user_table.read_bytes()
    for length in range(0, len(whole), 7):
        user_table.write_bytes(whole[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataflow.install()
        assert choice(4)[0] in dataflow.IMPLEMENTATIONS


def test_a_named_table_that_is_missing_is_said(user_table):
    with pytest.warns(UserWarning, match="is no file"):
        dataflow.install()


class TestGpu:
    """Tables of GPUs, in the library that plays them."""

    @pytest.fixture(autouse=True, params=[("simt:nvidia", 0), ("simt:cdna", 1), ("simt:rdna", 2)], ids=lambda p: p[0])
    def gpu(self, request):
        self.name, self.index = request.param
        self.host = library.load("simt")
        self.ops = getattr(torch.ops, f"fdpp_{self.name.replace(':', '_')}")

    def row(self, **changes) -> dataflow.Row:
        return row(**({"device": self.name, "dtype": "float16"} | changes))

    def choice(self, M: int) -> dict:
        return self.host.choice("float16", 72, 48, M, self.index)

    def test_every_row_is_taken_and_gives_the_product(self, user_table):
        last = self.host.flat_gemm_configs("float16", self.index) - 1
        kinds = [("gemv", -1), ("aten", -1), ("flat_gemm", -1), ("flat_gemm", 0), ("flat_gemm", last)]
        rows = [self.row(M=M, impl=impl, config=config) for M, (impl, config) in enumerate(kinds, start=1)]
        dataflow.write_table(user_table, rows, "")
        dataflow.install()
        weight = torch.randn(72, 48).half()
        for M, (impl, config) in enumerate(kinds, start=1):
            assert self.choice(M) == {"impl": impl, "config": config, "source": "table"}
            x = torch.randn(M, 48).half()
            torch.testing.assert_close(self.ops.linear.default(x, weight), x @ weight.T, rtol=2e-3, atol=2e-2)
        assert self.choice(len(kinds) + 1)["source"] == "rule"

    def test_rows_of_other_devices_do_not_count(self, user_table):
        others = [DEVICE, "cuda:A GPU that is not here", "hip:another", "simt:unknown", "vulkan:x", "cuda:", ":"]
        dataflow.write_table(user_table, [self.row(device=device, config=1) for device in others], "")
        dataflow.install()
        assert self.choice(4)["source"] == "rule"

    def test_a_configuration_that_the_kernels_do_not_have(self, user_table):
        configs = self.host.flat_gemm_configs("float16")
        dataflow.write_table(user_table, [self.row(config=configs)], "")
        with pytest.warns(UserWarning, match=f"left out: .*bad config {configs} of flat_gemm"):
            dataflow.install()
        assert self.choice(4)["source"] == "rule"

    def test_a_configuration_that_other_kinds_have(self, user_table, capfd):
        config = self.host.flat_gemm_configs("float16") - 1
        has_it = config < self.host.flat_gemm_configs("float16", self.index)
        dataflow.write_table(user_table, [self.row(config=config)], "")
        dataflow.install()
        assert self.choice(4)["source"] == ("table" if has_it else "rule")
        said = (
            f"fdpp: {self.name} has no such configuration of flat_gemm as 1 rows of its dataflow table name: left out\n"
        )
        assert capfd.readouterr().err == ("" if has_it else said)

    def test_float32_has_no_configurations(self, user_table):
        dataflow.write_table(user_table, [self.row(dtype="float32", config=0)], "")
        with pytest.warns(UserWarning, match="left out: .*bad config 0 of flat_gemm"):
            dataflow.install()


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 1, -5)])
def test_explain_refuses_sizes_below_one(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        dataflow.explain(*sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_dtype_is_one_of_torch_or_its_name(dtype):
    name = str(dtype).removeprefix("torch.")
    assert dataflow.explain(72, 48, 4, dtype=dtype) == dataflow.explain(72, 48, 4, dtype=name)
    assert dataflow.explain(72, 48, 4, dtype=dtype).startswith(name)


@pytest.mark.parametrize("dtype", ["float64", torch.int8, None, 3])
def test_an_unknown_dtype(user_table, dtype):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16; got "):
        dataflow.explain(72, 48, 4, dtype=dtype)
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16; got "):
        tuning.tune([(24, 40)], dtypes=[dtype])


def test_tuning_writes_a_table_that_decides_and_resumes(user_table):
    seen = []
    tuning.tune([(24, 40)], dtypes=["float32"], rows=[1, 4], seconds=0.01, progress=lambda *at: seen.append(at))
    rows = dataflow.read_table(user_table)
    assert [(r.N, r.K, r.M) for r in rows] == [(24, 40, 1), (24, 40, 4)]
    assert all(r.microseconds > 0 and r.gbps >= 0 and r.error < 1e-5 and r.device == DEVICE for r in rows)
    assert choice(3, N=24, K=40) == (rows[1].impl, rows[1].config, "table")
    before = user_table.read_text().splitlines()
    tuning.tune([(24, 40)], dtypes=[torch.float32], rows=[1, 4, 8], seconds=0.01)
    assert set(before) < set(user_table.read_text().splitlines())
    assert seen[-1][0] == seen[-1][1] == 2


def test_tuning_refuses_what_a_gpu_does_not_take(user_table):
    with pytest.raises(ValueError, match="expected bfloat16 or float16 on a GPU, got float32"):
        tuning.tune([(64, 64)], device="cuda", dtypes=["float16", "float32"])


def test_tuning_refuses_absurd_shapes(user_table):
    with pytest.raises(ValueError, match="8 GiB"):
        tuning.tune([(1 << 20, 1 << 20)])


def packed_row(**changes) -> dataflow.Row:
    return row(**(dict(K=256, impl="gemv", config=-1, format="q4_k") | changes))


def test_formats_have_rows_of_their_own(user_table):
    rows = [packed_row(M=16), packed_row(M=64, impl="aten"), row(K=256, M=16, impl="aten", config=-1)]
    dataflow.write_table(user_table, rows, "")
    dataflow.install()
    find = library.load().choice
    assert find("float32", 72, 256, 9, format="q4_k") == {"impl": "gemv", "config": -1, "source": "table"}
    assert find("float32", 72, 256, 40, format="q4_k")["impl"] == "aten"
    assert find("float32", 72, 256, 9)["impl"] == "aten"
    assert find("float32", 72, 256, 9, format="q6_k") == {"impl": "flat_gemm", "config": -1, "source": "rule"}
    assert find("float32", 72, 256, 2, format="q6_k")["impl"] == "gemv"
    assert "in q4_k" in dataflow.explain(72, 256, 9, "float32", weight_format="q4_k")
    assert "measured at M=16" in dataflow.explain(72, 256, 9, "float32", weight_format="q4_k")


@pytest.mark.parametrize("impl", ["gemv", "flat_gemm", "aten"])
def test_every_implementation_gives_the_product_with_a_packed_weight(user_table, impl):
    dataflow.write_table(user_table, [packed_row(M=8, impl=impl), packed_row(M=8, N=40, impl="flat_gemm")], "")
    dataflow.install()
    parts = [tuning.random_packed("q4_k", n, 256, seed=n) for n in (72, 40)]
    weight, layout, x = torch.cat(parts), "q4_k:72,q4_k:40", torch.randn(5, 256)
    values = ops.dequantize_rows(weight, layout, 256, torch.arange(112))
    residual = torch.randn(5, 112)
    result = ops.quantized_linear(x, weight, layout, residual=residual)
    torch.testing.assert_close(result, x @ values.T + residual, rtol=1e-3, atol=1e-4)


def test_a_table_from_before_there_were_formats(user_table):
    plain = row(M=4, impl="aten", config=-1)
    cells = ",".join(str(getattr(plain, name)) for name in dataflow.PLAIN_COLUMNS)
    user_table.write_text(",".join(dataflow.PLAIN_COLUMNS) + f"\n{cells}\n")
    assert dataflow.read_table(user_table) == [plain]


def test_explain_refuses_what_is_no_format():
    with pytest.raises(ValueError, match="format must be one of q4_0, .* got 'q9'"):
        dataflow.explain(16, 256, 1, weight_format="q9")
    with pytest.raises(ValueError, match="columns of q4_k must be a multiple of 256; got 96"):
        dataflow.explain(16, 96, 1, weight_format="q4_k")


def test_tuning_measures_formats_where_they_have_rows(user_table):
    tuning.tune([(24, 32), (24, 256)], rows=[1, 9], formats=["q4_k", "q8_0"], seconds=0.01)
    found = {(r.format, r.K, r.M) for r in dataflow.read_table(user_table)}
    assert found == {(name, k, m) for name, k in (("q8_0", 32), ("q8_0", 256), ("q4_k", 256)) for m in (1, 9)}
    assert all(r.error < 0.02 for r in dataflow.read_table(user_table))
    assert library.load().choice("bfloat16", 24, 256, 9, format="q4_k")["source"] == "table"
    with pytest.raises(ValueError, match="columns of q4_k"):
        tuning.tune([(24, 32)], formats=["q4_k"])
    with pytest.raises(ValueError, match="format must be one of"):
        tuning.tune([(24, 32)], formats=["q9"])


@pytest.mark.parametrize("format", tuning.PACKED)
def test_random_packed_weights_have_values_of_a_size(format):
    values = ops.dequantize_rows(tuning.random_packed(format, 40, 1024, 1), f"{format}:40", 1024, torch.arange(40))
    assert values.isfinite().all() and 0.01 < values.std() * 1024**0.5 < 10
