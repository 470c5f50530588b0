"""Reports: the same bytes for the same results, hostile text stays text, and a real browser agrees."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from browsers import browser, page_of
from cai_core.testing.reporter import FromDisk
from cai_core.testing.results import results
from cai_plugins.reporters.charts import rates_chart
from cai_plugins.reporters.csv_report import CsvReporter
from cai_plugins.reporters.html import HtmlReporter
from cai_plugins.reporters.json_report import JsonReporter
from cai_plugins.reporters.markdown import MarkdownReporter, cell
from cai_plugins.reporters.units import ORDERS, Units, add_results
from cai_plugins.reporters.words import interval, memory, seconds, signed, value

__all__ = ["page_of"]  # a fixture

TEXT = "</script><b>{{ 7*7 }} $x_1$ \u202e\u0000\ud800 ]]> --> \u05d0\u05d1 | a | `b` [l](http://x)"


HEBREW = ["\u05e9\u05dc\u05d5\u05dd", "\u05e2\u05d5\u05dc\u05dd", "\u05d9\u05e4\u05d4", "\u05de\u05d0\u05d3"]
ARABIC = [
    "\u0645\u0631\u062d\u0628\u0627",
    "\u0623\u064a\u0647\u0627",
    "\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u062c\u062f\u0627",
]
# Where each word stands, left and right, wherever it is shown, in the order of the page.
PLACES = """words => {
  const found = Object.fromEntries(words.map(word => [word, []]));
  const walker = document.createTreeWalker(document.querySelector("#units"), NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); )
    for (const word of words) {
      const at = node.data.indexOf(word);
      if (at < 0 || !node.parentElement.checkVisibility()) continue;
      const range = document.createRange();
      range.setStart(node, at);
      range.setEnd(node, at + word.length);
      const place = range.getBoundingClientRect();
      found[word].push([place.left, place.right]);
    }
  return found;
}"""


class TestInABrowser:
    pytestmark = browser

    def test_harmful_text_is_folded_until_clicked(self, tmp_path: Path, page_of: Any) -> None:
        given = results()
        marker = "something nobody asked to read"
        given["chains"][0]["answer"] = given["pairs"][0]["a"] = given["samples"][0]["answers"]["base"] = marker
        given["samples"][0]["prompt"][0]["content"] = marker
        (path,) = HtmlReporter(1000).write(given, tmp_path)
        page, _, said = page_of(path)
        assert page.get_by_text(marker).count() == 0, "not even in the page before it is opened"
        page.locator("#units summary").first.click()
        page.locator("#units .text").get_by_text(marker).first.wait_for(state="visible")
        assert said == []

    def test_the_keyboard_opens_what_is_folded(self, tmp_path: Path, page_of: Any) -> None:
        (path,) = HtmlReporter(1000).write(many(2), tmp_path)
        page, _, _ = page_of(path)
        page.locator("#units summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("#units details").first.evaluate("element => element.open")
        page.locator("#units details .text").first.wait_for(state="visible")

    def test_units_are_paged_filtered_sorted_and_searched(self, tmp_path: Path, page_of: Any) -> None:
        (path,) = HtmlReporter(1000).write(many(450), tmp_path)
        page, asked, said = page_of(path)
        units = page.locator("#units")
        expect(units.locator("[data-at=off]:visible"), [])
        state = units.locator("[data-at=state]")
        expect(state, "1 to 50 of 450")
        assert units.locator("summary code").all_inner_texts() == [f"p{i:03d}" for i in range(50)]
        units.get_by_role("button", name="Next").click()
        expect(state, "51 to 100 of 450")
        units.get_by_label("Search texts").fill("REVISION 44")  # in the third shard; case does not matter
        expect(state, "1 to 11 of 11")
        units.get_by_label("Search texts").fill("")
        units.get_by_label("Marked").select_option("odd")
        expect(state, "1 to 50 of 225")
        units.get_by_label("Sort").select_option("change by the revisions")
        assert units.locator("summary code").first.inner_text() == "p449"
        units.get_by_label("Kind").select_option("trained on")
        units.get_by_role("button", name="Unfold all of this page").click()
        units.locator("details .text").get_by_text("critique 449", exact=True).wait_for(state="visible")
        assert units.locator("details[open]").count() == 50
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert said == []

    def test_what_a_revision_changed_is_marked_word_by_word(self, tmp_path: Path, page_of: Any) -> None:
        given = many(1)
        given["chains"][0]["answer"] = "Sure, take a knife and run."
        given["chains"][0]["rounds"][0]["revision"] = "Please take a walk and  breathe."
        (path,) = HtmlReporter(1000).write(given, tmp_path)
        page, _, _ = page_of(path)
        page.locator("#units summary").first.click()
        page.locator("#units ins").first.wait_for()
        assert page.locator("#units del").all_text_contents() == ["Sure,", "knife", " run."]
        assert page.locator("#units ins").all_text_contents() == ["Please", "walk", "  breathe."]
        looks = page.evaluate("getComputedStyle(document.querySelector('#units del')).textDecorationLine")
        assert looks == "line-through", "not by colour alone"

    def test_more_units_than_the_cap_are_counted(self, tmp_path: Path, page_of: Any) -> None:
        (path,) = HtmlReporter(20).write(many(30), tmp_path)
        page, _, _ = page_of(path)
        assert "The first 20 of 30 are here" in page.locator("#units").inner_text()
        expect(page.locator("#units [data-at=state]"), "1 to 20 of 20")

    def test_without_scripts_the_page_says_where_the_units_are(self, tmp_path: Path, page_of: Any) -> None:
        (path,) = HtmlReporter(1000).write({**many(2), "metrics": results()["metrics"]}, tmp_path)
        page, _, _ = page_of(path, scripts=False)
        assert page.get_by_text("The units are shown by a script, which did not run").is_visible()
        assert page.locator("#results table").first.is_visible()

    def test_print_has_no_texts_of_units(self, tmp_path: Path, page_of: Any) -> None:
        (path,) = HtmlReporter(1000).write(many(2), tmp_path)
        page, _, _ = page_of(path)
        page.emulate_media(media="print")
        assert not page.locator("#units").is_visible()
        assert page.locator("#findings").is_visible()

    @pytest.mark.parametrize("words", [HEBREW, ARABIC], ids=["hebrew", "arabic"])
    def test_right_to_left_text_runs_from_the_right(self, tmp_path: Path, page_of: Any, words: list[str]) -> None:
        """Whatever the paragraph before it, in every kind of text, and with what changed in its place."""
        given = many(1)
        chain = given["chains"][0]
        said = f"A line in English.\n{' '.join(words)}"
        chain["prompt"][0]["content"] = chain["rounds"][0]["critique"] = said
        chain["answer"] = " ".join([*words[:2], "prior", words[3]])
        chain["rounds"][0]["revision"] = " ".join([*words[:2], "later", words[3]])
        chain["prompt_id"] = f"{words[0]} 12"
        (path,) = HtmlReporter(1000).write(given, tmp_path)
        page, _, _ = page_of(path)
        page.locator("#units summary").first.click()
        page.locator("#units ins").wait_for()
        places = page.evaluate(PLACES, [*words, "English", "prior", "later", "trained on"])
        for english, text in (0, 0), (1, 2):  # the prompt and the critique; between them the answer
            first, last = places[words[0]][text + 1], places[words[3]][text]
            assert first[0] > last[0], "the first word is right of the last"
            assert first[1] > 1000, "and begins at the right edge"
            assert places["English"][english][0] < 400, "while the line before it begins at the left"
        row = [places[word][-1][0] for word in (words[0], words[1], "prior", "later", words[3])]
        assert row == sorted(row, reverse=True), "old before new, in place"
        assert places[words[0]][0][0] < places["trained on"][0][0], "the id does not change the order of what follows"

    @pytest.mark.parametrize("width", [400, 1280])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_nothing_overflows_and_texts_can_be_read(
        self, tmp_path: Path, page_of: Any, width: int, scheme: str
    ) -> None:
        (path,) = HtmlReporter(1000).write(results("a" * 300 + " long"), tmp_path)
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


def many(n: int) -> dict[str, Any]:
    """Results with ``n`` chains and nothing else to explore. Later ones changed more; tags go even, odd."""
    empty: dict[str, Any] = {
        **dict.fromkeys(
            (
                "pairs",
                "samples",
                "scores",
                "metrics",
                "comparisons",
                "calibration",
                "looks",
                "curves",
                "measured_curves",
            ),
            (),
        ),
        **dict.fromkeys(("audit", "labels", "frontier")),
    }
    chains = [
        {
            "prompt_id": f"p{i:03d}",
            "kind": "red_team",
            "prompt": [{"role": "user", "content": f"prompt {i}"}],
            "answer": f"answer {i}",
            "rounds": [
                {
                    "principle_id": ("even", "odd")[i % 2],
                    "critique_request": "criticise",
                    "critique": f"critique {i}",
                    "revision_request": "revise",
                    "revision": f"revision {i}",
                    "failure": None,
                    "change": i / 1000,
                }
            ],
            "failure": None,
        }
        for i in range(n)
    ]
    return {**results(), **empty, "chains": chains}


def expect(place: Any, text: str | list[str]) -> None:
    """Waits until ``place`` says ``text``; an empty list: until it is nowhere."""
    from playwright.sync_api import expect as wait

    wait(place).to_have_text(text)


def contrast(first: str, second: str) -> float:
    """WCAG 2's contrast of two CSS colours like rgb(1, 2, 3)."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_same_results_same_bytes_in_another_process(tmp_path: Path) -> None:
    (here,) = HtmlReporter(1000).write(results(TEXT), tmp_path)
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]\n"
        "from cai_core.testing.results import results\n"
        "from cai_plugins.reporters.html import HtmlReporter\n"
        "import test_reporters\n"
        "HtmlReporter(1000).write(results(test_reporters.TEXT), Path(sys.argv[2]))"
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
    assert read["chains"][0]["rounds"][0]["critique"] == "x\ufffd<b>"
    assert read["metrics"] == json.loads(json.dumps(results("x\ufffd<b>")["metrics"]))
    given["audit"]["mass"] = float("nan")
    with pytest.raises(ValueError, match="JSON compliant"):
        JsonReporter().write(given, tmp_path)


@pytest.mark.parametrize(
    "given", [{}, results("x\ny\ud800"), {"a": [], "b": {}, "c": [[], [1, {"d": []}]], "e": "[\n]"}]
)
def test_json_in_parts_is_json_at_once(given: dict[str, Any], tmp_path: Path) -> None:
    (path,) = JsonReporter().write(given, tmp_path)
    at_once = json.dumps(given, ensure_ascii=False, indent=1).replace("\ud800", "\ufffd")
    assert path.read_text(encoding="utf-8") == at_once + "\n"


class TestLargerThanMemory:
    """Rows come from disk; a reporter is handed them one after the other and keeps none."""

    class Text(str):
        """A text that can be counted."""

    class Counted:
        """Rows of texts; the texts of one, and the most that were there at a time."""

        def __init__(self, rows: list[dict[str, Any]]) -> None:
            self.rows, self.there = rows, weakref.WeakSet[TestLargerThanMemory.Text]()
            self.each = self.most = self.made = 0

        def __iter__(self) -> Iterator[dict[str, Any]]:
            for row in self.rows:
                copied = {**self.copied(row), "prompt_id": row["prompt_id"]}
                self.each = self.each or len(self.there)
                self.most = max(self.most, len(self.there))
                yield copied
                del copied

        def copied(self, found: Any) -> Any:
            if isinstance(found, dict):
                return {key: self.copied(value) for key, value in found.items()}
            if isinstance(found, list):
                return [self.copied(value) for value in found]
            if isinstance(found, str):
                self.made += 1  # equal texts would count as one
                self.there.add(text := TestLargerThanMemory.Text(f"{found} {self.made}"))
                return text
            return found

    @pytest.mark.parametrize("reporter", [HtmlReporter(1000), HtmlReporter(10), JsonReporter(), CsvReporter()])
    def test_no_text_is_kept(self, reporter: Any, tmp_path: Path) -> None:
        given = many(60)
        chains = self.Counted(given["chains"])
        reporter.write({**given, "chains": chains}, tmp_path)
        assert 5 < chains.most <= 2 * chains.each, "this row and the one before"

    def test_lists_and_rows_from_disk_give_the_same_page(self) -> None:
        given = results()
        tables = {name: FromDisk(given[name]) for name in ("chains", "pairs", "samples", "scores")}
        assert HtmlReporter(1000).render({**given, **tables}) == HtmlReporter(1000).render(given)


def test_what_several_tables_say_of_one_prompt_is_one_unit(tmp_path: Path) -> None:
    """Whatever their order; and every score under one heading."""
    given = many(3)
    pair = {**results()["pairs"][0], "a": "first", "b": "second"}
    given["pairs"] = [{**pair, "id": name} for name in ("p002", "p000", "other")]
    turns = [{"role": "user", "content": "held out"}]
    given["samples"] = [{"prompt_id": n, "kind": "helpful", "prompt": turns, "answers": {"base": n}} for n in "xy"]
    given["scores"] = [
        {"evaluator": e, "model": m, "id": n, "values": {"score": 0.5}, "failure": None, "item": None}
        for e in ("one", "two") for m in ("base", "sft") for n in "yx"
    ]  # fmt: skip
    with Units(1000, ORDERS, tmp_path) as units:
        add_results(units, given)
        assert [unit.id for unit in units.known.values()] == ["p000", "p001", "p002", "other", "x", "y"]
        (shard,) = units.shards()
        blocks = [entry["blocks"] for entry in json.loads(zlib.decompress(base64.b64decode(shard)))]
    heads = [[block["text"] for block in some if block["type"] == "head"] for some in blocks]
    assert heads == [
        ["Round 1: even", "Labelled pair"], ["Round 1: odd"], ["Round 1: even", "Labelled pair"], ["Labelled pair"],
        ["Answers", "Scores"], ["Answers", "Scores"],
    ]  # fmt: skip
    assert [len([block for block in some if block["type"] == "facts"]) for some in blocks] == [1, 0, 1, 1, 4, 4]


def shown(given: dict[str, Any], folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """By the unit's name: the labels of its texts, and what it is marked with."""
    with Units(1000, ORDERS, folder) as units:
        add_results(units, given)
        blocks = [entry for shard in units.shards() for entry in json.loads(zlib.decompress(base64.b64decode(shard)))]
        names = [unit.id for unit in units.known.values()]
        tags = {unit.id: unit.tags for unit in units.known.values()}
    labels = [
        [
            label
            for block in entry["blocks"]
            for label in (block.get("label"), *(side[0] for side in block.get("sides", ())))
        ]
        for entry in blocks
    ]
    return {name: [label for label in some if label] for name, some in zip(names, labels, strict=True)}, tags


def test_a_text_that_was_cut_says_so_where_it_stands(tmp_path: Path) -> None:
    given = many(3)
    cut, whole, _ = given["chains"]
    cut |= {"cut_at": 48}
    cut["rounds"][0] |= {"critique_cut_at": 0, "revision_cut_at": 64}
    whole |= {"cut_at": 0}
    whole["rounds"][0] |= {"critique_cut_at": 0, "revision_cut_at": 0}
    pair = {**results()["pairs"][0], "cut_at": {"a": 0, "b": 56}}
    given["pairs"] = [{**pair, "id": "pair"}, {**pair, "id": "unknown", "cut_at": None}]
    sample = {"kind": "helpful", "prompt": [], "answers": {"base": "I was going to", "sft": "I was."}}
    given["samples"] = [{**sample, "prompt_id": "s", "cut_at": {"base": 40, "sft": 0}}, {**sample, "prompt_id": "t"}]
    labels, tags = shown(given, tmp_path)
    assert labels["p000"][1:] == [
        "first answer, cut at 48 tokens", "critique request", "critique", "revision request",
        "revision, cut at 64 tokens; underlined: new, struck out: gone",
    ]  # fmt: skip
    assert labels["p001"] == labels["p002"]
    assert labels["p001"][1] == "first answer"
    assert labels["pair"][-2:] == ["answer A", "answer B, cut at 56 tokens"]
    assert labels["unknown"][-2:] == ["answer A", "answer B"]
    assert labels["s"] == ["plain words, cut at 40 tokens", "plain words"]
    assert labels["t"] == ["plain words", "plain words"]
    marked = {name for name, some in tags.items() if "cut at the token limit" in some}
    assert marked == {"p000", "pair", "s"}


def test_how_many_texts_were_cut_and_of_how_many_that_is_not_known(tmp_path: Path) -> None:
    given = results()
    (path,) = MarkdownReporter().write(given, tmp_path)
    told = [line for line in path.read_text(encoding="utf-8").splitlines() if "not known" in line]
    assert [line.split(" | ")[1:] for line in told] == [
        ["answers", "5 of 8 (62.5 %), 2 not known", "48 |"],
        ["revisions", "0 of 4 (0.0 %), 2 not known", " |"],
        ["critiques", "2 not known", " |"],
    ]
    page = HtmlReporter(1000).render(given)
    assert "5 of 8" in page
    assert "62.5 %" in page
    assert '<td>critiques</td><td class="number"><span class="soft">2 not known</span>' in page, "which is not 0"
    CsvReporter().write(given, tmp_path)
    rows = (tmp_path / "tables/answers.csv").read_text(encoding="utf-8-sig").splitlines()
    assert [row.rsplit(",", 1)[1] for row in rows[:3]] == ['"cut_at"', '"48"', '""']


def test_the_published_schema_says_what_results_are() -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs/reference/results.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    given = json.loads(json.dumps(results()))
    assert [error.message for error in validator.iter_errors(given)] == []
    for field in given:
        assert list(validator.iter_errors({key: value for key, value in given.items() if key != field})), field
    assert list(validator.iter_errors({**given, "surprise": 1}))


def test_markdown_cells_cannot_break_out(tmp_path: Path) -> None:
    (path,) = MarkdownReporter().write(results("a | b\n# c <script> `d` [e](f)"), tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    headings = [line for line in lines if line.startswith("#")]
    assert headings[1:] == [
        "## Before and after",
        "## Differences",
        "## The judge",
        "## The preference model",
        "## Texts cut at the token limit",
        "## What ran",
    ]
    assert "<script>" not in "".join(lines).replace("\\<script", "")
    tables = [line for line in lines if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} <= {3, 4, 5, 6, 9}


def test_a_report_names_the_constitution_by_its_digest(tmp_path: Path) -> None:
    given = results()
    given["constitution"]["digest"] = "7f32a473c8ca" * 5
    for reporter in (HtmlReporter(1000), MarkdownReporter()):
        (path,) = reporter.write(given, tmp_path)
        assert given["constitution"]["digest"] in path.read_text(encoding="utf-8")


def test_a_run_with_nothing_but_prompts_has_a_report(tmp_path: Path) -> None:
    given = results()
    empty: dict[str, Any] = {key: type(item)() for key, item in given.items() if isinstance(item, list)}
    given = {**given, **empty, "audit": None, "labels": None}
    (path,) = HtmlReporter(1000).write(given, tmp_path)
    assert "Nothing to report" in path.read_text(encoding="utf-8")
    MarkdownReporter().write(given, tmp_path)


@pytest.mark.parametrize("people", [True, False])
def test_labels_of_people_are_not_called_a_judges(people: bool, tmp_path: Path) -> None:
    given = results()
    given = {**given, "audit": None, "labels": {**given["labels"], "by_people": people}}
    for reporter in (HtmlReporter(1000), MarkdownReporter()):
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
    page = HtmlReporter(1000).render(given)
    section = page[page.index('<section id="reward">') : page.index('<section id="principles"')]
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


def test_what_has_no_interval_is_drawn_and_told(tmp_path: Path) -> None:
    given = results()
    rate = next(metric for metric in given["metrics"] if metric["unit"] == "rate")
    for found in (*rate["values"].values(), given["comparisons"][0]):
        found |= {"low": None, "high": None}
    assert "[no interval]" in HtmlReporter(1000).render(given)
    (path,) = MarkdownReporter().write(given, tmp_path)
    assert "no interval" in path.read_text(encoding="utf-8")


def test_the_legend_names_a_model_that_the_first_rate_lacks() -> None:
    rate = next(metric for metric in results()["metrics"] if metric["unit"] == "rate")
    second = {**rate, "values": dict.fromkeys(("base", "sft"), rate["values"]["base"])}
    first = {**rate, "values": {"base": rate["values"]["base"]}}
    shown = [
        rates_chart([first, second], [{"name": "base", "label": "B"}, {"name": "sft", "label": label}])
        for label in ("short", "a much longer name", "_hidden", "_another")
    ]
    assert None not in shown
    assert len(set(shown)) == 4, "the name is drawn"


def test_a_markdown_cell_turns_nothing_round_and_holds_no_entity() -> None:
    assert cell("a\u202eb\u2066c\u2029d") == "a\ufffdb\ufffdc d"
    assert cell("\u05d0\u05d1") == "\u05d0\u05d1", "letters of any direction stay"
    assert cell("&lt;b&gt; ~~gone~~") == "\\&lt;b\\&gt; \\~\\~gone\\~\\~"
