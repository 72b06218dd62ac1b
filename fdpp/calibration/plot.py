"""The picture of a calibration: which logits each head sees, its phi and the range of its guard."""

from __future__ import annotations

from pathlib import Path

from fdpp.calibration import Calibration
from fdpp.calibration.fit import BOUNDS

_MOST_HEADS = 2048  # that are told apart; of more, every n-th is drawn


def plot(calibration: Calibration, path: Path) -> None:
    """Write the picture; its kind follows from the name. matplotlib must be installed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    heads = [
        (layer + (head + 0.5) / len(quantiles), phi, levels)
        for layer, quantiles in enumerate(calibration.quantiles)
        for head, (phi, levels) in enumerate(zip(calibration.phi["wide"][layer], quantiles, strict=True))
    ]
    heads = heads[:: -(-len(heads) // _MOST_HEADS)]
    x, phi = [head[0] for head in heads], [head[1] for head in heads]
    least, low, median, high, most = zip(*(head[2] for head in heads), strict=True)
    below, above = BOUNDS["wide"]
    layers = len(calibration.quantiles)

    figure, axis = plt.subplots(figsize=(min(18.0, max(8.0, 0.4 * layers)), 5))
    width = 0.8 * 72 * (figure.get_size_inches()[0] - 1) / len(x)  # of a head, in points
    axis.vlines(x, least, most, color="silver", linewidth=min(0.4 * width, 1.5), label="min to max")
    axis.vlines(x, low, high, color="tab:blue", alpha=0.45, linewidth=min(width, 4), label="0.01 % to 99.99 %")
    axis.plot(x, median, ".", color="black", markersize=2.5, label="median")
    axis.plot(x, phi, "_", color="tab:red", markersize=max(2.0, min(width, 6.0)), label="phi")
    for bound, label in ((below, "range of the guard"), (above, None)):
        band = [value + bound for value in phi]
        axis.plot(x, band, color="tab:green", linewidth=0.8, drawstyle="steps-mid", label=label)
    axis.set_xticks([layer + 0.5 for layer in range(layers)], [str(layer) for layer in range(layers)], fontsize=7)
    for layer in range(layers + 1):
        axis.axvline(layer, color="gray", alpha=0.2, linewidth=0.5)
    axis.set(xlim=(0, layers), xlabel="layer (its heads from left to right)", ylabel="logit")
    axis.set_title(f"Attention logits of {calibration.model} over {calibration.tokens} tokens", fontsize=10)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=6, fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
