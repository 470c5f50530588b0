"""Reports: the same bytes for the same results, hostile text stays text, and a real browser agrees."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cai_core.testing.results import results
from cai_plugins.reporters.html import HtmlReporter
from cai_plugins.reporters.json_report import JsonReporter
from cai_plugins.reporters.markdown import MarkdownReporter
from cai_plugins.reporters.words import interval, memory, seconds, signed, value

HOSTILE = (
    "</details></section><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
    "<svg onload=window.hacked=1><style>body{display:none}</style>\"' onmouseover=window.hacked=1 x='"
    "<iframe src=https://example.invalid/></iframe><a href=javascript:window.hacked=1>x</a>"
    "<meta http-equiv=refresh content='0;url=https://example.invalid/'><base href=https://example.invalid/>"
    "{{ 7*7 }}{% raw %} $x_1$ \\alpha \u202egnp.exe \u0000\ud800 ]]> --> &lt;b&gt; \u05d0\u05d1 | a | `b` [l](http://x)"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]


@pytest.fixture(scope="module")
def page_of() -> Iterator[Any]:
    """Opens a file in headless Chromium; gives the page and the addresses that it asked for."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_page(path: Path, width: int = 1280, scheme: str = "light") -> tuple[Any, list[str], list[str]]:
            page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            asked: list[str] = []
            said: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: said.append(message.text))
            page.on("dialog", lambda dialog: (said.append("dialog"), dialog.dismiss()))
            page.goto(path.as_uri())
            return page, asked, said

        yield open_page
        chromium.close()


class TestInABrowser:
    pytestmark = browser

    def test_hostile_text_in_every_field_stays_text(self, tmp_path: Path, page_of: Any) -> None:
        (path,) = HtmlReporter(100).write(results(HOSTILE), tmp_path)
        page, asked, said = page_of(path)
        for details in page.locator("details").all():
            details.evaluate("element => element.open = true")
        page.mouse.move(300, 300)
        assert page.evaluate("window.hacked") is None
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert said == []
        assert page.url == path.as_uri()
        found = page.evaluate(
            "document.querySelectorAll('script,iframe,object,embed,form,base,svg,[onerror],[onload],[onmouseover],"
            '[style],a:not([href^="#"]),meta[http-equiv=refresh]\').length'
        )
        assert found == 0
        assert page.evaluate("document.querySelectorAll('style').length") == 1
        assert page.evaluate("[...document.images].every(i => i.src.startsWith('data:image/svg+xml;base64,'))")
        # and nothing of it is lost: what the reader sees is the text itself
        shown = page.locator("#chains .text").first.inner_text()
        assert "<script>window.hacked=1</script>" in shown
        assert "{{ 7*7 }}{% raw %}" in shown
        assert page.locator("#findings .finding").count() == 2
        assert page.locator("footer").is_visible()

    def test_harmful_text_is_folded_until_clicked(self, tmp_path: Path, page_of: Any) -> None:
        given = results()
        marker = "something nobody asked to read"
        given["chains"][0]["answer"] = given["pairs"][0]["a"] = given["samples"][0]["answers"]["base"] = marker
        given["samples"][0]["prompt"][0]["content"] = marker
        (path,) = HtmlReporter(100).write(given, tmp_path)
        page, _, _ = page_of(path)
        places = page.get_by_text(marker)
        assert places.count() >= 4
        assert not any(place.is_visible() for place in places.all())
        page.locator("#chains details summary").first.click()
        assert page.locator("#chains").get_by_text(marker).first.is_visible()

    def test_the_keyboard_opens_what_is_folded(self, tmp_path: Path, page_of: Any) -> None:
        (path,) = HtmlReporter(100).write(results(), tmp_path)
        page, _, _ = page_of(path)
        page.locator("#chains summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("#chains details").first.evaluate("element => element.open")

    @pytest.mark.parametrize("width", [400, 1280])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_nothing_overflows_and_texts_can_be_read(
        self, tmp_path: Path, page_of: Any, width: int, scheme: str
    ) -> None:
        (path,) = HtmlReporter(100).write(results("a" * 300 + " long"), tmp_path)
        page, _, said = page_of(path, width, scheme)
        assert said == [], "the style sheet is the one that the policy allows"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ink, ground = (
            page.evaluate(f"getComputedStyle(document.querySelector('section#ran')).{name}")
            for name in ("color", "backgroundColor")
        )
        assert contrast(ink, ground) >= 7, "WCAG AAA for body text"
        images = page.evaluate("[...document.images].map(i => [i.currentSrc === i.src, i.naturalWidth > 0])")
        assert images
        assert all(image == [scheme == "light", True] for image in images), "charts follow the colour scheme"


def contrast(first: str, second: str) -> float:
    """WCAG 2's contrast of two CSS colours like rgb(1, 2, 3)."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_same_results_same_bytes_in_another_process(tmp_path: Path) -> None:
    (here,) = HtmlReporter(100).write(results(HOSTILE), tmp_path)
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from cai_core.testing.results import results\n"
        "from cai_plugins.reporters.html import HtmlReporter\n"
        "import test_reporters\n"
        "HtmlReporter(100).write(results(test_reporters.HOSTILE), Path(sys.argv[2]))"
    )
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(other)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
    )
    assert here.read_bytes() == (other / "report.html").read_bytes()


def test_json_is_strict_and_whole(tmp_path: Path) -> None:
    given = results("x\ud800<b>")
    (path,) = JsonReporter().write(given, tmp_path)
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read["chains"][0]["rounds"][0]["critique"] == "x?<b>"
    assert read["metrics"] == json.loads(json.dumps(results("x?<b>")["metrics"]))
    given["audit"]["mass"] = float("nan")
    with pytest.raises(ValueError, match="JSON compliant"):
        JsonReporter().write(given, tmp_path)


def test_markdown_cells_cannot_break_out(tmp_path: Path) -> None:
    (path,) = MarkdownReporter().write(results("a | b\n# c <script> `d` [e](f)"), tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    headings = [line for line in lines if line.startswith("#")]
    assert headings[1:] == [
        "## Before and after",
        "## Differences",
        "## The judge",
        "## The preference model",
        "## What ran",
    ]
    assert "<script>" not in "".join(lines).replace("\\<script", "")
    tables = [line for line in lines if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} <= {3, 4, 5, 6, 9}


def test_a_run_with_nothing_but_prompts_has_a_report(tmp_path: Path) -> None:
    given = results()
    empty: dict[str, Any] = {key: type(item)() for key, item in given.items() if isinstance(item, list)}
    given = {**given, **empty, "audit": None, "labels": None}
    (path,) = HtmlReporter(100).write(given, tmp_path)
    assert "Nothing to report" in path.read_text(encoding="utf-8")
    MarkdownReporter().write(given, tmp_path)


@pytest.mark.parametrize("people", [True, False])
def test_labels_of_people_are_not_called_a_judges(people: bool, tmp_path: Path) -> None:
    given = results()
    given = {**given, "audit": None, "labels": {**given["labels"], "by_people": people}}
    for reporter in (HtmlReporter(100), MarkdownReporter()):
        (path,) = reporter.write(given, tmp_path)
        text = path.read_text(encoding="utf-8")
        assert ("never audited" in text) != people
        assert ("The labels of people" in text) == people


def test_unknown_is_never_shown_as_zero() -> None:
    for show in (value, signed):
        assert show(None, "rate") == "unknown"
    assert interval({"low": None, "high": None}, "rate") == "[no interval]"
    assert (value(0.1234, "rate"), signed(-0.05, "rate"), value(31.26, "count")) == ("12.3 %", "-5.0 pp", "31.3")
    assert (seconds(161.4), seconds(12.34), memory(5234.0)) == ("2 min 41 s", "12.3 s", "5.2 GB")


def test_the_preference_model_is_told_beside_what_length_alone_gives(tmp_path: Path) -> None:
    given = results()
    model = given["reward_models"][0]
    model["heldout"]["differences"] += [
        {**model["heldout"]["differences"][0], "value": None, "low": None, "high": None}
    ]
    page = HtmlReporter(100).render(given)
    section = page[page.index('<section id="reward">') : page.index('<section id="chains"')]
    for shown in (
        "60.0 %",
        "[50.0, 70.0]",
        "+5.0 pp [-5.0 pp, +15.0 pp]",
        "0.100",
        "0.200",
        "0.660",
        "60.0 % of the loss",
    ):
        assert shown in section, shown
    assert "unknown[no interval]" in section.replace('<span class="soft">', "").replace("</span>", "")
    assert "Not measured on comparisons" in section
    (path,) = MarkdownReporter().write(given, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "| plain words | 20 | 60.0 % \\[50.0, 70.0\\] |" in text
    assert "+5.0 pp [-5.0 pp, +15.0 pp], n = 20" in text
    assert "- not measured on comparisons" in text
