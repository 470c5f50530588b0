"""``html``: the report as one file that opens from disk, and the comparison of two runs.

No network, no inline exception: the Content-Security-Policy allows one style sheet and one script by their hashes and
pictures within the file, nothing else. All texts are escaped by the template engine, or made nodes of text by the
script; those that may be harmful are folded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from cai_plugins.reporters.charts import (
    curve_chart,
    differences_chart,
    frontier_chart,
    labels_chart,
    looked_frontier_chart,
    looks_charts,
    rates_chart,
    reliability_chart,
)
from cai_plugins.reporters.units import COMPARED, ORDERS, Units, add_comparison, add_results
from cai_plugins.reporters.words import interval, memory, p_value, plain, seconds, signed, size, span, value

TEMPLATES = Path(__file__).parent / "templates"
BETTER = {"higher": "higher is better", "lower": "lower is better", "none": ""}
LEFT_OUT = {  # why the stage `revise` does not train on a text
    "no_op": "changed nothing",
    "near_duplicate": "near duplicates",
    "repetition": "in a loop",
    "boilerplate": "boilerplate",
    "refusal": "bare refusals",
}


class HtmlReporter:
    """A ``Reporter`` and ``ComparisonReporter``. The same results give the same bytes."""

    def __init__(self, units: int) -> None:
        self.units = units

    def write(self, results: Mapping[str, Any], out: Path) -> Sequence[Path]:
        """Write ``report.html``."""
        path = out / "report.html"
        with Units(self.units, ORDERS, out) as units:
            _write(path, self._page(results, units))
        return [path]

    def write_comparison(self, comparison: Mapping[str, Any], path: Path) -> None:
        """Write the page of a comparison."""
        with Units(self.units, COMPARED, path.parent) as units:
            add_comparison(units, comparison)
            chart = differences_chart(comparison["rows"])
            _write(path, _render("comparison.html.j2", c=comparison, chart=chart, packed=units))

    def render(self, results: Mapping[str, Any]) -> str:
        """The page of a run as text."""
        with Units(self.units, ORDERS, Path(gettempdir())) as units:
            return "".join(self._page(results, units))

    def _page(self, results: Mapping[str, Any], units: Units) -> Iterator[str]:
        add_results(units, results)
        return _render(
            "report.html.j2",
            r=results,
            charts=_charts(results),
            of_models=[m for m in results["metrics"] if _of_a_model(m, results)],
            of_others=[m for m in results["metrics"] if not _of_a_model(m, results)],
            labels={model["name"]: model["label"] for model in results["models"]},
            units={metric["id"]: metric["unit"] for metric in results["metrics"]},
            packed=units,
        )


def content_security_policy(css: str, script: str) -> str:
    """What the page may load: its own style sheet and script, pictures inside it, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") for text in (css, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _write(path: Path, parts: Iterator[str]) -> None:
    with path.open("wb") as file:
        for part in parts:
            file.write(part.encode("utf-8"))


def _render(template: str, **given: Any) -> Iterator[str]:
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "explorer.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    return environment.get_template(template).generate(
        css=Markup(css),
        script=Markup(script),
        policy=content_security_policy(css, script),
        better=BETTER,
        left_out=LEFT_OUT,
        value=value,
        signed=signed,
        size=size,
        span=span,
        interval=interval,
        p_value=p_value,
        seconds=seconds,
        memory=memory,
        **given,
    )


def _of_a_model(metric: Mapping[str, Any], results: Mapping[str, Any]) -> bool:
    """Whether it is of a model of the run, and not of its judge or reward model."""
    return not metric["values"] or any(model["name"] in metric["values"] for model in results["models"])


def _plain(found: Any) -> Any:
    return plain(found) if isinstance(found, str) and not isinstance(found, Markup) else found


def _charts(results: Mapping[str, Any]) -> dict[str, Any]:
    probabilities = [pair["p_a"] for pair in results["pairs"] if pair["p_a"] is not None]
    return {
        "rates": rates_chart(results["metrics"], results["models"]),
        "labels": labels_chart(probabilities),
        "frontier": frontier_chart(results.get("frontier"), results["models"]),
        "calibration": [(entry, reliability_chart(entry)) for entry in results.get("calibration", ())],
        "looks": [(looks, looks_charts(looks), looked_frontier_chart(looks)) for looks in results.get("looks", ())],
        "measured": [
            (curve, curve_chart(curve))
            for curve in results.get("measured_curves", ())
            if not (results.get("frontier") and curve["id"].endswith(".frontier"))  # drawn larger already
        ],
        "curves": [(curve, curve_chart(curve)) for curve in results["curves"]],
    }
