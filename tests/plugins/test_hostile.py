"""Text that tries to be more than text, in every field that a model, a data set, a constitution or a recipe can fill:
nothing of it runs, loads, breaks out or is lost, on a page, in a table, in a terminal, in Markdown."""

from __future__ import annotations

import csv
import io
import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from browsers import browser, page_of
from cai_core.cli.main import main
from cai_core.cli.progress import summary_table
from cai_core.cli.terminal import clean
from cai_core.testing.results import results
from cai_core.types.records import UnitFailure
from cai_plugins.reporters.csv_report import CsvReporter, cell
from cai_plugins.reporters.html import HtmlReporter
from cai_plugins.reporters.json_report import JsonReporter
from cai_plugins.reporters.markdown import MarkdownReporter
from cai_plugins.reporters.model_card import ModelCardReporter
from cai_plugins.reporters.words import plain
from hostile import EVERYTHING, LONG_LINE, PAYLOADS
from runs import evaluated_run

__all__ = ["page_of"]  # a fixture

SEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
EVIL = (
    "iframe,object,embed,form,base,link,svg,math,audio,video,marquee,[onerror],[onload],[onmouseover],[onfocus],"
    '[ontoggle],[style],[srcdoc],a:not([href^="#"]),meta[http-equiv=refresh]'
)


def comparison(text: str) -> dict[str, Any]:
    """As ``cai compare`` makes it, with ``text`` in every field that holds text."""
    given = results(text)
    side = {
        "run": text, "recipe_name": text, "model": text, "label": text, "constitution": {"id": text, "digest": text},
        "seed": 1, "status": text, "evaluation": text, "model_digest": text,
    }  # fmt: skip
    value = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 4, "failed": 1, "interval": text}
    row = {
        **given["comparisons"][0], "p_holm": 0.01, "conclusive": True, "minimum_detectable": 0.1, "a_value": value,
        "b_value": value, "evaluator": text, "unit": "rate", "direction": "lower", "note": text, "unpaired_a": 1,
        "unpaired_b": 0,
    }  # fmt: skip
    change = {
        "metric": row["metric"], "id": text, "a": 0.0, "b": 1.0, "verdict": "worse",
        "prompt": [{"role": "user", "content": text}], "item": None, "answer_a": text, "answer_b": None,
    }  # fmt: skip
    own = {**change, "prompt": None, "item": {text: text, "turns": [{"role": "user", "content": text}], "n": [1]}}
    return {
        "schema": 1,
        "kind": "comparison",
        "a": side,
        "b": side,
        "forced": True,
        "warnings": [text],
        "settings": [{"key": text, "a": text, "b": [text]}],
        "rows": [row],
        "left_out": [{"metric": text, "label": text, "reason": text}],
        "changes": [change, own],
        "findings": given["findings"],
    }


def check(page: Any, asked: list[str], said: list[str], path: Path) -> None:
    """Everything unfolded, nothing happened, and the page holds what we put there alone."""
    page.locator("#units summary").first.wait_for()
    page.locator("details").evaluate_all("all => all.forEach(element => { element.open = true; })")
    page.locator("#units .text").first.wait_for(state="visible")
    page.mouse.move(300, 300)
    for key in ("Tab", "Tab", "Tab"):
        page.keyboard.press(key)
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert [url for url in asked if url != path.as_uri() and not url.startswith("data:image/svg+xml;base64,")] == []
    assert said == []
    assert page.url == path.as_uri()
    assert page.evaluate(f"document.querySelectorAll('{EVIL}'.replaceAll('&quot;', '\"')).length") == 0
    runs = "[...document.scripts].filter(s => s.type !== 'application/octet-stream').length"
    assert page.evaluate(runs) == 1, "our own script"
    assert page.evaluate("document.querySelectorAll('style').length") == 1
    assert page.evaluate("[...document.images].every(i => i.src.startsWith('data:image/svg+xml;base64,'))")
    assert page.locator("footer").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


class TestInABrowser:
    pytestmark = browser

    def test_a_report(self, tmp_path: Path, page_of: Any) -> None:
        (path,) = HtmlReporter(1000).write(results(EVERYTHING), tmp_path)
        page, asked, said = page_of(path)
        check(page, asked, said, path)
        texts = page.locator("#units .text").evaluate_all("all => all.map(element => element.textContent)")
        assert len(texts) > 20
        assert set(texts) == {plain(EVERYTHING)}, "and nothing of it is lost"
        assert plain(EVERYTHING) in page.locator("#findings").evaluate("element => element.textContent")

    def test_a_comparison(self, tmp_path: Path, page_of: Any) -> None:
        path = tmp_path / "comparison.html"
        HtmlReporter(1000).write_comparison(comparison(EVERYTHING), path)
        page, asked, said = page_of(path)
        check(page, asked, said, path)
        texts = page.locator("#units .text").evaluate_all("all => all.map(element => element.textContent)")
        assert set(texts) == {plain(EVERYTHING)}

    def test_searching_for_it_finds_it_and_runs_nothing(self, tmp_path: Path, page_of: Any) -> None:
        path = tmp_path / "comparison.html"
        HtmlReporter(1000).write_comparison(comparison(EVERYTHING), path)
        page, _, said = page_of(path)
        page.get_by_label("Search texts").fill("<img src=x onerror=window.hacked=1>")
        page.locator("#units [data-at=state]").get_by_text("1 to 2 of 2").wait_for()
        assert page.evaluate("window.hacked") is None
        assert said == []

    def test_lines_of_a_megabyte(self, tmp_path: Path, page_of: Any) -> None:
        given = results()
        chain, pair, sample = (given[key][0] for key in ("chains", "pairs", "samples"))
        chain["answer"] = chain["rounds"][0]["revision"] = pair["a"] = sample["answers"]["base"] = LONG_LINE
        given["title"] = given["findings"][0]["text"] = given["pairs"][-1]["failure"]["message"] = LONG_LINE
        (path,) = HtmlReporter(1000).write(given, tmp_path)
        page, asked, said = page_of(path)
        check(page, asked, said, path)

    @pytest.mark.slow
    @pytest.mark.parametrize("payload", PAYLOADS[:-1])
    def test_each_by_itself(self, tmp_path: Path, page_of: Any, payload: str) -> None:
        """So that none hides behind another."""
        (path,) = HtmlReporter(1000).write(results(payload), tmp_path)
        assert elements(path.read_text(encoding="utf-8")) == elements_of_plain_words()
        page, asked, said = page_of(path)
        check(page, asked, said, path)
        texts = page.locator("#units .text").evaluate_all("all => all.map(element => element.textContent)")
        assert set(texts) == {plain(payload)}
        page.context.close()


@cache
def elements_of_plain_words() -> list[tuple[str, tuple[str, ...]]]:
    return elements(HtmlReporter(1000).render(results()))


def elements(page: str) -> list[tuple[str, tuple[str, ...]]]:
    found: list[tuple[str, tuple[str, ...]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, tuple(name for name, _ in attrs)))

    Reader().feed(page)
    return found


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_cell_is_a_formula_and_none_is_lost(payload: str, tmp_path: Path) -> None:
    for path in CsvReporter().write(results(payload), tmp_path):
        text = path.read_bytes().decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline="")))
        assert {len(row) for row in rows} == {len(rows[0])}, "no row is broken or shifted"
        assert not [found for row in rows for found in row if SEEN.search(found.translate(BIDI))]
        for separator in ",;\t":  # what a spreadsheet in another language takes for one
            for found in (
                found for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) for found in row
            ):
                number = re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", found)
                assert number or not re.match(r"\s*[=+\-@\uff1d|%]", found), (separator, found)
    answers = list(
        csv.reader(io.StringIO((tmp_path / "tables/answers.csv").read_bytes().decode("utf-8-sig"), newline=""))
    )
    assert answers[1][4].replace("'", "") == plain(payload).replace("'", "")


BIDI = dict.fromkeys(map(ord, "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"))
"""A cell keeps them: they reorder text within it and no spreadsheet obeys them."""


def test_cells_of_numbers_stay_numbers() -> None:
    assert [cell(found) for found in (-0.25, 3, "-0.25", None, True, "=1", "-1-1", "a; b - c")] == [
        "-0.25", "3", "-0.25", "", "yes", "'=1", "'-1-1", "a; b - c",
    ]  # fmt: skip
    assert cell("Take:\n- flour;\t=1;2") == "Take:\n'- flour;'\t'=1;2"
    assert len(cell("x" * 40_000)) < 32_767


@pytest.mark.parametrize("reporter", [MarkdownReporter(), ModelCardReporter()], ids=["markdown", "model_card"])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_markdown_has_no_markup_of_others(payload: str, reporter: Any, tmp_path: Path) -> None:
    def tokens(text: str) -> list[Any]:
        (path,) = reporter.write(results(text), tmp_path)
        written = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.S)
        assert not SEEN.search(written.translate(BIDI))
        flat = []
        for token in MarkdownIt("commonmark").enable("table").parse(written):
            flat += [token, *(token.children or ())]
        return [token.type for token in flat if token.type not in ("text", "text_special", "softbreak")]

    found = tokens(payload or "x")
    assert not {"html_block", "html_inline", "link_open", "image", "fence", "code_inline"} & set(found)
    assert found == tokens("plain words")


def test_a_comparison_in_markdown_has_no_markup_of_others(tmp_path: Path) -> None:
    path = tmp_path / "comparison.md"
    MarkdownReporter().write_comparison(comparison(EVERYTHING), path)
    found = {token.type for token in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))}
    assert not {"html_block", "fence", "hr", "code_block"} & found


@pytest.mark.parametrize("payload", PAYLOADS)
def test_json_gives_back_every_text(payload: str, tmp_path: Path) -> None:
    (path,) = JsonReporter().write(results(payload), tmp_path)
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read["chains"][0]["answer"] == re.sub("[\ud800-\udfff]", "\ufffd", payload)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_terminal_is_told_nothing_but_text(payload: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = results(payload)
    summary_table({"models": given["models"], "metrics": given["metrics"]}, given["findings"])
    said = capsys.readouterr().out
    assert not SEEN.search(said)
    assert not SEEN.search(clean(payload))


def test_a_comparison_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    items = {
        payload or "empty": 0.0
        for payload in PAYLOADS
        if "\x00" not in payload and not re.search("[\ud800-\udfff]", payload)
    }
    texts = dict.fromkeys(items, EVERYTHING)
    runs = [
        str(
            evaluated_run(
                tmp_path / "runs",
                tmp_path / ".cai/store",
                name,
                {"rl": dict.fromkeys(items, value)},
                prompts=texts,
                answer=EVERYTHING,
            )
        )
        for name, value in (("a", 0.0), ("b", 1.0))
    ]
    assert main(["compare", *runs, "--changes", "200"]) == 0
    assert not SEEN.search(capsys.readouterr().out)


def test_the_record_of_a_run_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = {"id": EVERYTHING, "status": "error", "error": EVERYTHING}
    given = results(EVERYTHING)
    summary = {"models": given["models"], "metrics": given["metrics"]}
    record = {
        "status": "error",
        "stages": [stage],
        "summary": summary,
        "findings": given["findings"],
        "report": ["x\x1b"],
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert main(["report", str(tmp_path)]) == 0
    assert not SEEN.search(capsys.readouterr().out)


def test_a_lone_surrogate_in_an_error_becomes_an_escape_where_it_enters() -> None:
    assert UnitFailure("infra", "bad \ud800 text").message == "bad \\ud800 text"
