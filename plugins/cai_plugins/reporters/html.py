"""``html``: the report as one file that opens from disk.

No network, no script, no inline style: the Content-Security-Policy allows one style sheet by its hash and pictures
within the file, nothing else. All texts are escaped by the template engine; those that may be harmful are folded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from cai_plugins.reporters.charts import curve_chart, labels_chart, rates_chart
from cai_plugins.reporters.words import interval, memory, plain, seconds, signed, value

TEMPLATES = Path(__file__).parent / "templates"
BETTER = {"higher": "higher is better", "lower": "lower is better", "none": ""}
KINDS = {"red_team": "red-team", "helpful": "helpful:", "borderline": "borderline"}


class HtmlReporter:
    """A ``Reporter`` that writes ``report.html``. The same results give the same bytes."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def write(self, results: Mapping[str, Any], out: Path) -> Sequence[Path]:
        """Write the page."""
        path = out / "report.html"
        # A lone surrogate of a broken model output cannot be written as UTF-8.
        path.write_bytes(self.render(results).encode("utf-8", "replace"))
        return [path]

    def render(self, results: Mapping[str, Any]) -> str:
        """The page as text."""
        css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_plain,
        )
        return environment.get_template("report.html.j2").render(
            r=results,
            rows=self.rows,
            css=Markup(css),
            policy=content_security_policy(css),
            charts=_charts(results),
            better=BETTER,
            kinds=KINDS,
            labels={model["name"]: model["label"] for model in results["models"]},
            units={metric["id"]: metric["unit"] for metric in results["metrics"]},
            value=value,
            signed=signed,
            interval=interval,
            seconds=seconds,
            memory=memory,
            shown=self._shown,
        )

    def _shown(self, there: int) -> str:
        return f" The first {self.rows} of {there}; JSON and tables hold more." if there > self.rows else ""


def content_security_policy(css: str) -> str:
    """What the page may load: its own style sheet, pictures inside it, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(css.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _plain(found: Any) -> Any:
    return plain(found) if isinstance(found, str) and not isinstance(found, Markup) else found


def _charts(results: Mapping[str, Any]) -> dict[str, Any]:
    probabilities = [pair["p_a"] for pair in results["pairs"] if pair["p_a"] is not None]
    return {
        "rates": rates_chart(results["metrics"], results["models"]),
        "labels": labels_chart(probabilities),
        "curves": [(curve, curve_chart(curve)) for curve in results["curves"]],
    }
