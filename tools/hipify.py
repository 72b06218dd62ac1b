"""Writes csrc/hip/*.hip, the launchers of AMD GPUs, from csrc/cuda/*.cu.

    python tools/hipify.py           write them
    python tools/hipify.py --check   exit with 1 and name those that are stale

The names of the runtime are torch.utils.hipify's to translate; what differs beyond names lives in
csrc/cuda/{arch,device}.h and csrc/hip/{arch,device}.h.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path

from torch.utils.hipify import hipify_python

ROOT = Path(__file__).resolve().parents[1]
CUDA = ROOT / "csrc" / "cuda"
HIP = ROOT / "csrc" / "hip"
HEADER = "// Generated from csrc/cuda/{name} by `make hipify`: edit that file.\n"


def translate(name: str, source: str) -> str:
    """The HIP source of a CUDA launcher."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(source, encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            results = hipify_python.hipify(
                project_directory=folder, output_directory=folder, extensions=(".cu",), show_progress=False
            )
        translated = Path(results[str(path)].hipified_path).read_text(encoding="utf-8")
    body = translated.removeprefix(hipify_python.HIPIFY_C_BREADCRUMB).removeprefix('#include "hip/hip_runtime.h"\n')
    return HEADER.format(name=name) + body.replace('#include "cuda/', '#include "hip/')


def expected() -> dict[Path, str]:
    """Every file of csrc/hip that this tool owns, and what it should hold."""
    return {
        HIP / f"{path.stem}.hip": translate(path.name, path.read_text("utf-8")) for path in sorted(CUDA.glob("*.cu"))
    }


def stale(files: dict[Path, str]) -> list[Path]:
    """Files that are missing, differ, or have lost their source."""
    differing = [path for path, text in files.items() if not path.exists() or path.read_text("utf-8") != text]
    return differing + sorted(set(HIP.glob("*.hip")) - set(files))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file is stale")
    check = parser.parse_args().check
    files = expected()
    paths = stale(files)
    for path in paths:
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(files[path], encoding="utf-8") if path in files else path.unlink()
    return 1 if check and paths else 0


if __name__ == "__main__":
    sys.exit(main())
