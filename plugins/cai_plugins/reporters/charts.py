"""Charts of a report as SVG, drawn by matplotlib: a light and a dark one of each, with the same bytes for the same
numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from cai_plugins.reporters.words import plain

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
    names = [model["name"] for model in models]
    known = [{n: v for n, v in m["values"].items() if n in names and v["value"] is not None} for m in metrics]
    rows = [m for m, found in zip(metrics, known, strict=True) if m["unit"] == "rate" and found]
    if not rows:
        return None

    def draw(figure: Figure, ink: str) -> None:
        axes = figure.add_subplot()
        named: set[str] = set()
        for y, metric in enumerate(rows):
            for i, model in enumerate(models):
                found = metric["values"].get(model["name"])
                if not found or found["value"] is None:
                    continue
                at = y + (i - (len(models) - 1) / 2) * 0.22
                errors = None
                if found["low"] is not None:
                    errors = [[100 * (found["value"] - found["low"])], [100 * (found["high"] - found["value"])]]
                first = model["name"] not in named
                named.add(model["name"])
                label = _plain(model["label"]) if first else None
                axes.errorbar(100 * found["value"], at, xerr=errors, fmt="none", ecolor=COLOURS[i % 6], capsize=3)
                axes.plot(100 * found["value"], at, MARKERS[i % 6], color=COLOURS[i % 6], markersize=6, label=label)
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
            axes.errorbar(
                series["x"], series["y"], yerr=_errors(series), capsize=3, color=COLOURS[i % 6],
                marker=MARKERS[i % 6] if single else None, markersize=4, label=_plain(series["name"]),
            )  # fmt: skip
        if curve.get("diagonal"):
            axes.axline((0, 0), slope=1, color=ink, linestyle="--", linewidth=1)
        axes.set_xlabel(_plain(curve["x_label"]))
        axes.set_ylabel(_plain(curve["y_label"]))
        axes.grid(alpha=0.25)
        if len(curve["series"]) > 1:
            axes.legend(frameon=False, labelcolor=ink)

    ends = "; ".join(f"{s['name']} from {s['y'][0]:.3g} to {s['y'][-1]:.3g}" for s in curve["series"] if s["y"])
    return _chart(draw, 5.4, 3.2, f"{curve['title']}: {ends}")


def _errors(series: Mapping[str, Any]) -> list[list[float]] | None:
    """How far the interval of each point reaches, 0 where a point has none; None where none has one."""
    if not any(low is not None for low in series.get("low") or ()):
        return None
    triples = list(zip(series["y"], series["low"], series["high"], strict=True))
    return [
        [0.0 if low is None else y - low for y, low, _ in triples],
        [0.0 if high is None else high - y for y, _, high in triples],
    ]


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


def differences_chart(rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Differences of rates between two runs; filled where significant."""
    rows = [row for row in rows if row["unit"] == "rate"]
    if not rows:
        return None

    def draw(figure: Figure, ink: str) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=ink, linestyle="--", linewidth=1)
        for y, row in enumerate(rows):
            centre, low, high = (100 * row[key] for key in ("difference", "low", "high"))
            axes.plot([low, high], [y, y], color=COLOURS[0])
            fill = COLOURS[0] if row["conclusive"] else "none"
            axes.plot([centre], [y], marker="o", markersize=7, color=COLOURS[0], markerfacecolor=fill)
        axes.set_yticks(range(len(rows)), [_plain(row["label"]) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("B less A in percentage points, with 95 % interval")
        axes.grid(axis="x", alpha=0.25)

    words = "; ".join(f"{row['label']} {100 * row['difference']:+.1f}" for row in rows)
    return _chart(draw, 7.4, 1.0 + 0.5 * len(rows), f"Differences in percentage points. {words}")


def frontier_chart(frontier: Mapping[str, Any] | None, models: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Harmlessness against helpfulness, a point per model in the order of training, as the paper's Figure 2."""
    if not frontier:
        return None
    labels = {model["name"]: model["label"] for model in models}
    parents = {model["name"]: model.get("parent") for model in models}
    points = frontier["points"]
    places = {p["model"]: (p["helpful"]["value"], p["harmless"]["value"]) for p in points}

    def draw(figure: Figure, ink: str) -> None:
        axes = figure.add_subplot()
        for i, point in enumerate(points):
            _point(axes, point, i, _plain(labels.get(point["model"], point["model"])))
            before = parents.get(point["model"])
            while before is not None and before not in places:
                before = parents.get(before)
            if before is not None:
                _arrow(axes, places[before], places[point["model"]], ink)
        for name, set_label, invert in (
            ("helpful", axes.set_xlabel, axes.invert_xaxis),
            ("harmless", axes.set_ylabel, axes.invert_yaxis),
        ):
            lower = frontier[name]["direction"] == "lower"
            set_label(_plain(frontier[name]["label"]) + (" (lower is better)" if lower else ""))
            if lower:
                invert()
        axes.grid(alpha=0.25)
        figure.legend(loc="outside upper center", ncols=3, frameon=False, labelcolor=ink)

    words = "; ".join(
        f"{labels.get(p['model'], p['model'])}: "
        + ", ".join(f"{axis} {p[axis]['value']:.3g}" for axis in ("helpful", "harmless"))
        for p in points
    )
    return _chart(draw, 6.4, 4.2, f"Harmlessness against helpfulness; up and to the right is better. {words}")


def _point(axes: Any, point: Mapping[str, Any], number: int, label: str | None) -> None:
    x, y = point["helpful"], point["harmless"]
    errors = [
        [[found["value"] - found["low"]], [found["high"] - found["value"]]] if found["low"] is not None else None
        for found in (x, y)
    ]
    at, colour = (x["value"], y["value"]), COLOURS[number % 6]
    axes.errorbar(*at, xerr=errors[0], yerr=errors[1], fmt="none", ecolor=colour, capsize=3)
    axes.plot(*at, MARKERS[number % 6], color=colour, markersize=8, label=label)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], ink: str) -> None:
    look = {"arrowstyle": "->", "color": ink, "alpha": 0.6, "shrinkA": 5, "shrinkB": 7, "mutation_scale": 14}
    axes.annotate("", xy=end, xytext=start, arrowprops=look)


def looked_frontier_chart(looks: Mapping[str, Any]) -> Chart | None:
    """The way of a policy in training: its score on harmful against that on harmless requests, look by look."""
    if not looks.get("frontier"):
        return None
    points = looks["frontier"]["points"]
    scored_by = {"heldout_reward": "held-out reward", "reward": "reward it learns from"}[looks["frontier"]["score"]]
    places = [(point["helpful"]["value"], point["harmless"]["value"]) for point in points]

    def draw(figure: Figure, ink: str) -> None:
        axes = figure.add_subplot()
        for start, end in pairwise(places):
            _arrow(axes, start, end, ink)
        named: set[str] = set()
        for point, place in zip(points, places, strict=True):
            kept = looks["best"] is not None and point["step"] == looks["best"]
            label = "policy that was kept" if kept else "policy on the way"
            _point(axes, point, int(kept), None if label in named else label)
            named.add(label)
            axes.annotate(f"{point['step']:.0f}", place, xytext=(6, 6), textcoords="offset points", fontsize=8)
        axes.set_xlabel(f"{scored_by} on harmless requests")
        axes.set_ylabel(f"{scored_by} on harmful requests")
        axes.grid(alpha=0.25)
        figure.legend(loc="outside upper center", ncols=2, frameon=False, labelcolor=ink)

    words = "; ".join(f"step {p['step']:.0f}: {x:.3g}, {y:.3g}" for p, (x, y) in zip(points, places, strict=True))
    return _chart(draw, 5.4, 3.6, f"Score on harmless and on harmful requests by the {scored_by}. {words}")


def reliability_chart(entry: Mapping[str, Any]) -> Chart:
    """How often a judge is right when it is so sure, as the paper's Figure 9."""
    bins = entry["bins"]

    def draw(figure: Figure, ink: str) -> None:
        axes = figure.add_subplot()
        axes.plot([50, 100], [50, 100], color=ink, linestyle="--", linewidth=1, label="as sure as right")
        x, y = ([100 * found[key] for found in bins] for key in ("confidence", "right"))
        errors = [
            [100 * (found["right"] - found["low"]) for found in bins],
            [100 * (found["high"] - found["right"]) for found in bins],
        ]
        axes.errorbar(x, y, yerr=errors, fmt="o", color=COLOURS[0], capsize=3, label="the judge")
        axes.set_xlim(48, 102)
        axes.set_ylim(-4, 104)
        axes.set_xlabel("how sure: probability of the preferred answer, per cent")
        axes.set_ylabel("how often right, per cent")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, labelcolor=ink, loc="lower right")

    words = "; ".join(f"sure {100 * f['confidence']:.0f} %, right {100 * f['right']:.0f} % of {f['n']}" for f in bins)
    return _chart(draw, 5.4, 3.2, f"Reliability of the judge ({entry['stage']}). {words}")


def looks_charts(looks: Mapping[str, Any]) -> list[Chart]:
    """Reward and held-out reward since the first look, over steps and over the square root of KL (Gao et al. 2022 draw
    over-optimisation so)."""
    rows = looks["rows"]
    names = [("reward", "reward it learns from"), ("heldout_reward", "held-out reward")]
    names = [(key, label) for key, label in names if all(key in row for row in rows)]
    if not names or len(rows) < 2:
        return []
    axes_of = [("step, or samples of best-of-n", [row["step"] for row in rows])]
    if all("kl" in row for row in rows):
        axes_of.append(("square root of KL to the reference (nats)", [max(0.0, row["kl"]) ** 0.5 for row in rows]))

    def chart(x_label: str, x: Sequence[float]) -> Chart:
        def draw(figure: Figure, ink: str) -> None:
            axes = figure.add_subplot()
            for i, (key, label) in enumerate(names):
                y = [row[key] - rows[0][key] for row in rows]
                axes.plot(x, y, color=COLOURS[i], marker=MARKERS[i], linestyle=("-", "--")[i % 2], label=label)
            kept = [i for i, row in enumerate(rows) if looks["best"] is not None and row["step"] == looks["best"]]
            for i in kept:
                axes.axvline(x[i], color=ink, linestyle=":", linewidth=1.5, label="policy that was kept")
            axes.set_xlabel(x_label)
            axes.set_ylabel("change since the start")
            axes.grid(alpha=0.25)
            axes.legend(frameon=False, labelcolor=ink)

        ends = "; ".join(f"{label} {rows[-1][key] - rows[0][key]:+.3g}" for key, label in names)
        return _chart(draw, 5.4, 3.0, f"Change of the scores over {x_label}: {ends}")

    return [chart(label, x) for label, x in axes_of]


def _chart(draw: Any, width: float, height: float, alt: str) -> Chart:
    ink = THEMES["light"]
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
    # Drawing takes ten times as long as this; text is drawn as paths, so that the ink's name stands for colours alone.
    drawings = [out.getvalue().replace(ink.encode(), colour.encode()) for colour in THEMES.values()]
    light, dark = ("data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii") for svg in drawings)
    return Chart(light, dark, alt, round(width * 96), round(height * 96))


def _plain(text: object) -> str:
    """A label that fits a chart; it may come from a third-party component."""
    line = " ".join(plain(str(text)).split())
    line = line if len(line) <= 48 else line[:47] + "…"
    # Matplotlib leaves names that begin with an underscore out of legends.
    return f"\N{ZERO WIDTH SPACE}{line}" if line.startswith("_") else line
