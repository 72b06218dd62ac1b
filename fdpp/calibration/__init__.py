"""phi per layer and head, from the logits of real text: what it is kept in, and which of it fits a model.

The paper takes one phi per model from such statistics (FlashDecoding++, arXiv 2311.01282, section 3). Heads differ more
than models do, so here each has its own. A phi that fits badly costs time and no digit: the guard moves it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from fdpp import dataflow, ops
from fdpp._host import GUARDS
from fdpp.engine.model import Model
from fdpp.errors import CheckpointError, one_line

#: At which quantiles the logits of a head are described.
LEVELS = (0.0, 1e-4, 0.5, 1 - 1e-4, 1.0)
FILE = "fdpp_phi.json"
_MAX_BYTES = 64 * 2**20


class CalibrationError(CheckpointError):
    """A calibration that cannot be used: unreadable, damaged, or of another model."""


@dataclass(frozen=True)
class Calibration:
    """The phi of every head of a model.

    Attributes:
        model: as whoever calibrated it named it.
        fingerprint: of the model; see :func:`fingerprint`.
        text: where the text was from.
        tokens: its length.
        phi: by guard (``"wide"``, ``"narrow"``), layer and head, in the natural units of logits.
        quantiles: by layer, head and the quantiles :data:`LEVELS`: the logits that attention saw.
        moves: by guard, how many references per row and head moved over this text with phi = 0 and with this phi.
        path: the file that it was read from.
    """

    model: str
    fingerprint: str
    text: str
    tokens: int
    phi: dict[str, list[list[float]]]
    quantiles: list[list[list[float]]]
    moves: dict[str, tuple[float, float]]
    path: Path | None = field(default=None, compare=False)

    def write(self, path: Path) -> None:
        """Write the file as a whole: a reader sees the old one or the new one, never a part."""
        content = {name: value for name, value in asdict(self).items() if name != "path"}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_text(json.dumps({"levels": LEVELS, **content}) + "\n", "utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def apply(self, model: Model) -> None:
        """Give each attention of the model its phi. **Mutates** the model.

        Raises:
            CalibrationError: it is of another model.
        """
        heads = [attention.num_heads for attention in model.attentions]
        if self.fingerprint != fingerprint(model) or [len(layer) for layer in self.phi["wide"]] != heads:
            source = self.path or "phi"
            raise CalibrationError(
                f"{source}: expected phi of this model, got that of {self.model!r:.80}, whose weights differ"
            )
        for attention, phi in zip(model.attentions, self.phi[guard_of(model.device, model.dtype)], strict=True):
            attention.phi = torch.tensor(phi, dtype=torch.float32, device=model.device)
        model.version += 1


def guard_of(device: torch.device, dtype: torch.dtype) -> str:
    """The guard of decode attention there: matrix units that take float16 bear less than a float32 does."""
    return "narrow" if device.type != "cpu" and dtype == torch.float16 else "wide"


def fingerprint(model: Model) -> str:
    """Tells models apart by the signs of the first row of each weight, which no dtype of the weights changes."""
    digest = hashlib.sha256()
    for weight in model.weights():
        digest.update(f"{[source.name for source in weight.sources]}{weight.shape}".encode())
        first = weight.tensor[:1]
        if weight.packing is not None:
            rows = torch.zeros(1, dtype=torch.int64, device="cpu")
            first = ops.dequantize_rows(weight.tensor, weight.packing.layout, weight.shape[1], rows)
            if (columns := weight.packing.columns) is not None:
                first = torch.empty_like(first).index_copy_(1, columns, first)
        digest.update(first.signbit().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def read(path: Path) -> Calibration:
    """Read a file of :meth:`Calibration.write`.

    Raises:
        CalibrationError: what is wrong with it.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"expected at most {_MAX_BYTES >> 20} MiB")
        content = json.loads(data)
        _check(content)
        moves = {guard: (content["moves"][guard][0], content["moves"][guard][1]) for guard in GUARDS}
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise CalibrationError(f"{path}: {reason}") from error
    return Calibration(**{**{name: content[name] for name in _FIELDS}, "moves": moves}, path=path)


_FIELDS = [each.name for each in fields(Calibration) if each.name != "path"]
_TYPES = {"model": str, "fingerprint": str, "text": str, "tokens": int, "phi": dict, "quantiles": list, "moves": dict}


def _check(content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"expected an object of JSON, got {type(content).__name__}")
    for name, kind in _TYPES.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"{name}: expected a {kind.__name__}, got {content.get(name)!r:.40}")
    for guard in GUARDS:
        heads = _numbers(content["phi"].get(guard), f"phi.{guard}")
        if heads != [len(layer) for layer in content["quantiles"] if isinstance(layer, list)]:
            raise ValueError(f"phi.{guard}: expected as many layers and heads as quantiles has")
        if _numbers([content["moves"].get(guard)], f"moves.{guard}") != [2]:
            raise ValueError(f"moves.{guard}: expected two numbers")
    for layer in content["quantiles"]:
        if any(count != len(LEVELS) for count in _numbers(layer, "quantiles")):
            raise ValueError(f"quantiles: expected {len(LEVELS)} numbers for each head")


def _numbers(value: Any, name: str) -> list[int]:
    """Check lists in lists of finite numbers; the lengths of the inner ones."""
    if not isinstance(value, list) or not all(isinstance(inner, list) for inner in value):
        raise ValueError(f"{name}: expected a list of lists, got {value!r:.40}")
    for inner in value:
        for number in inner:
            if type(number) not in (int, float) or not math.isfinite(number):
                raise ValueError(f"{name}: expected finite numbers, got {number!r:.40}")
    return [len(inner) for inner in value]


def beside_model(model: Path) -> Path:
    """Where a calibration lies that belongs to the files of a model: in its directory, or next to its single file."""
    return model / FILE if model.is_dir() else model.with_name(f"{model.name}.{FILE}")


def of_user(fingerprint: str) -> Path | None:
    """Where a user's own calibration of a model lies: beside the user's dataflow table; None without a home."""
    table = dataflow.user_table()
    return table and table.parent / "phi" / f"{fingerprint}.json"


def find(model: Model, path: Path) -> Calibration | None:
    """The calibration that fits a model: the one with its files, else the user's own, else None.

    One that cannot be used is left out, with a warning that says why.

    Args:
        model: with its weights.
        path: of its checkpoint.
    """
    for candidate in (beside_model(path), of_user(fingerprint(model))):
        if candidate is None or not os.path.isfile(candidate):
            continue
        try:
            found = read(candidate)
            found.apply(model)
            return found
        except CalibrationError as error:
            warnings.warn(f"phi left out: {error}", stacklevel=3)
    return None
