"""Draw ``docs/diagram.svg``: the way of a prompt through fdpp, and where the three techniques stand.

    python tools/draw_diagram.py

A test fails where the file is not what this script draws.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

PATH = Path(__file__).parents[1] / "docs" / "diagram.svg"
WIDTH, HEIGHT = 880, 452
LINE = 17  # from one line of a text to the next
PLAIN, TECHNIQUE, FRAME = ("#f6f8fa", "#8c959f"), ("#fff1d6", "#c77700"), ("#ffffff", "#8c959f")

# x, y, width, height, lines of text (the first is bold), colours
BOXES = (
    (20, 20, 130, 62, ("prompt", "text or token ids"), PLAIN),
    (190, 20, 200, 62, ("fdpp.LLM", "tokenizer, batch, sampling"), PLAIN),
    (430, 20, 200, 62, ("model", "layers and KV cache"), PLAIN),
    (670, 20, 190, 62, ("fdpp.ops", "documented functions"), PLAIN),
    (20, 116, 840, 166, (), FRAME),
    (36, 148, 216, 118, ("decode_attention", "split KV cache"), PLAIN),
    (268, 148, 372, 118, ("linear",), PLAIN),
    (656, 148, 188, 118, ("other operators", "rms_norm, add_rms_norm,", "rope_append, silu_mul"), PLAIN),
    (48, 208, 192, 46, ("1. one softmax reference", "for all splits, with a guard"), TECHNIQUE),
    (280, 176, 348, 28, ("3. table: which product is fastest for N, K, M",), TECHNIQUE),
    (280, 216, 92, 38, ("A: gemv",), PLAIN),
    (384, 216, 120, 38, ("2. B: flat GEMM",), TECHNIQUE),
    (516, 216, 112, 38, ("C: torch's",), PLAIN),
    (20, 316, 270, 62, ("cpu", "AMX, AVX-512, AVX2, portable"), PLAIN),
    (305, 316, 270, 62, ("cuda", "NVIDIA, compute capability 8.0 on"), PLAIN),
    (590, 316, 270, 62, ("hip", "AMD gfx90a, gfx942, gfx1100"), PLAIN),
)
LABELS = ((36, 138, "torch.ops.fdpp", "bold"),)
NOTES = (
    "1. Splits add up without exchanging maxima; a guard moves the reference where a logit leaves the safe range.",
    "2. Few rows are not padded to a large tile; the weights stream through once.",
    "3. Measured once per device and shape by fdpp tune, then looked up on each call.",
)
# From (x, y) to (x, y).
ARROWS = (
    (150, 51, 190, 51),
    (390, 51, 430, 51),
    (630, 51, 670, 51),
    (765, 82, 765, 116),
    (155, 282, 155, 316),
    (440, 282, 440, 316),
    (725, 282, 725, 316),
)


def box(x: int, y: int, width: int, height: int, lines: tuple[str, ...], colours: tuple[str, str]) -> list[str]:
    """A rectangle with its text in the middle; a box of the operators that holds others has its name at the top."""
    fill, stroke = colours
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{stroke}"/>',
    ]
    holds_others = any(
        x < other[0] and y < other[1] and other[0] < x + width and other[1] < y + height for other in BOXES
    )
    first = y + 20 if holds_others else y + (height - LINE * (len(lines) - 1)) / 2 + 5
    for number, line in enumerate(lines):
        weight = ' font-weight="bold"' if number == 0 else ""
        middle = f'x="{x + width / 2:g}" y="{first + LINE * number:g}" text-anchor="middle"'
        parts.append(f"<text {middle}{weight}>{escape(line)}</text>")
    return parts


def draw() -> str:
    """The diagram as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#1f2328">',
        "<title>A prompt goes through fdpp.LLM, the model and fdpp.ops to torch.ops.fdpp and a backend</title>",
        '<marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#57606a"/></marker>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for each in BOXES:
        parts += box(*each)
    for x, y, text, weight in LABELS:
        parts.append(f'<text x="{x}" y="{y}" font-weight="{weight}">{escape(text)}</text>')
    for x1, y1, x2, y2 in ARROWS:
        ends = f'x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"'
        parts.append(f'<line {ends} stroke="#57606a" stroke-width="1.5" marker-end="url(#arrow)"/>')
    for number, note in enumerate(NOTES):
        parts.append(f'<text x="20" y="{404 + 18 * number}">{escape(note)}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PATH.write_text(draw(), encoding="utf-8")
    print(PATH)
