"""Charts of a report as SVG, drawn by matplotlib: a light and a dark one of each, with the same bytes for the same
numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "D", "^", "v", "P")
THEMES = {"light": "#1d2433", "dark": "#e6e9f0"}


@dataclass(frozen=True, slots=True)
class Chart:
    """Two drawings as ``data:`` addresses, and what they show in words."""

    light: str
    dark: str
    alt: str
    width: int
    height: int


def rates_chart(metrics: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Every rate with its interval, one colour and marker per model."""
    rows = [m for m in metrics if m["unit"] == "rate" and any(v["value"] is not None for v in m["values"].values())]
    if not rows:
        return None

    def draw(figure: Figure, ink: str) -> None:
        axes = figure.add_subplot()
        for y, metric in enumerate(rows):
            for i, model in enumerate(models):
                found = metric["values"].get(model["name"])
                if not found or found["value"] is None:
                    continue
                at = y + (i - (len(models) - 1) / 2) * 0.22
                errors = [[100 * (found["value"] - found["low"])], [100 * (found["high"] - found["value"])]]
                axes.errorbar(
                    100 * found["value"], at, xerr=errors, fmt=MARKERS[i % 6], color=COLOURS[i % 6], capsize=3,
                    markersize=6, label=_plain(model["label"]) if y == 0 else None,
                )  # fmt: skip
        axes.set_yticks(range(len(rows)), [_plain(m["label"]) for m in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("per cent, with 95 % interval")
        axes.grid(axis="x", alpha=0.25)
        figure.legend(loc="outside upper center", ncols=3, frameon=False, labelcolor=ink)

    words = "; ".join(
        f"{m['label']}: " + ", ".join(f"{n} {100 * v['value']:.0f} %" for n, v in m["values"].items() if v["n"])
        for m in rows
    )
    return _chart(draw, 7.4, 1.3 + 0.62 * len(rows), f"Rates per model. {words}")


def curve_chart(curve: Mapping[str, Any]) -> Chart:
    """Lines over steps."""

    def draw(figure: Figure, ink: str) -> None:
        axes = figure.add_subplot()
        for i, series in enumerate(curve["series"]):
            single = len(series["x"]) < 25
            axes.plot(
                series["x"], series["y"], color=COLOURS[i % 6], marker=MARKERS[i % 6] if single else None,
                markersize=4, label=_plain(series["name"]),
            )  # fmt: skip
        axes.set_xlabel(_plain(curve["x_label"]))
        axes.set_ylabel(_plain(curve["y_label"]))
        axes.grid(alpha=0.25)
        if len(curve["series"]) > 1:
            axes.legend(frameon=False, labelcolor=ink)

    ends = "; ".join(f"{s['name']} from {s['y'][0]:.3g} to {s['y'][-1]:.3g}" for s in curve["series"] if s["y"])
    return _chart(draw, 5.4, 2.7, f"{curve['title']}: {ends}")


def labels_chart(probabilities: Sequence[float]) -> Chart | None:
    """How sure the labels are: a histogram of P(A)."""
    if not probabilities:
        return None

    def draw(figure: Figure, ink: str) -> None:
        axes = figure.add_subplot()
        axes.hist(probabilities, bins=[i / 20 for i in range(21)], color=COLOURS[0])
        axes.axvline(0.5, color=ink, linestyle="--", linewidth=1)
        axes.set_xlim(0, 1)
        axes.set_xlabel("label: probability that answer A is preferred")
        axes.set_ylabel("pairs")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", alpha=0.25)

    low, high = min(probabilities), max(probabilities)
    return _chart(draw, 5.4, 2.4, f"{len(probabilities)} labels between {low:.3f} and {high:.3f}")


def _chart(draw: Any, width: float, height: float, alt: str) -> Chart:
    addresses = {}
    for theme, ink in THEMES.items():
        settings = {
            "svg.hashsalt": "cai-core",
            "svg.fonttype": "path",
            "text.parse_math": False,
            "axes.edgecolor": ink,
            "axes.labelcolor": ink,
            "text.color": ink,
            "xtick.color": ink,
            "ytick.color": ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.family": "DejaVu Sans",
            "font.size": 10,
        }
        with matplotlib.rc_context(settings):
            figure = Figure(figsize=(width, height), layout="constrained")
            draw(figure, ink)
            out = io.BytesIO()
            metadata = {"Date": None, "Creator": None}
            figure.savefig(out, format="svg", transparent=True, metadata=metadata)
        addresses[theme] = "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode("ascii")
    return Chart(addresses["light"], addresses["dark"], alt, round(width * 96), round(height * 96))


def _plain(text: object) -> str:
    """A label that fits a chart; it may come from a third-party component."""
    line = " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split())
    return line if len(line) <= 48 else line[:47] + "…"
