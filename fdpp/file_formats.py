"""The formats in which a GGUF file can be written, without what it takes to write one."""

from __future__ import annotations

FILE_FORMATS = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q5_1": "MOSTLY_Q5_1",
    "q5_0": "MOSTLY_Q5_0",
    "q4_1": "MOSTLY_Q4_1",
    "q4_0": "MOSTLY_Q4_0",
    "mxfp4": "MOSTLY_MXFP4_MOE",
}
"""To the name of ``general.file_type``: the formats of matrices for which the ``gguf`` package has quantisers. Those
that it has for ternary weights are left out: they are for models that were trained with such."""
