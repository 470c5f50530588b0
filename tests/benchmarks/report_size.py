"""How large a report may grow: seconds to write it, its bytes, the memory of the process, and how long a browser takes
to show its units.

    python tests/benchmarks/report_size.py [UNITS]

Units are chains of two rounds with a labelled pair, 2.5 to 3 kB of words each, in the tables that the stages leave; a
report stage with ``html`` and ``json`` is measured, from those tables on. "Shown": until the first fifty units are in
the list, from the beginning of the navigation, a file on disk in headless Chromium. "Searched": a word that is in no
text, so that every shard is opened.
"""

from __future__ import annotations

import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cai_core.pipeline.job import Job, JobSpec
from cai_core.pipeline.results import build_results
from cai_core.pipeline.tables import CHAINS, LABELS
from cai_core.plugins import Plugins
from cai_core.registry import Registry
from cai_core.store.artifacts import Artifacts
from cai_core.store.tables import write_table
from cai_core.testing import CONSTITUTION
from cai_plugins.reporters.html import HtmlReporter
from cai_plugins.reporters.json_report import JsonReporter

WORDS = [
    f"{start}{end}"
    for start in ("ba", "co", "di", "fe", "gra", "hu", "ji", "ka", "lo", "mi", "na", "po", "re", "sta", "tu", "ve")
    for end in ("ber", "cat", "den", "fer", "gon", "lin", "mer", "nor", "pel", "ron", "sel", "tor", "ver", "wen")
]


def unit(rng: random.Random, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A chain and its pair."""

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))

    prompt = [{"role": "user", "content": text(10, 30)}]
    rounds = [
        {
            "principle_id": f"principle-{rng.randint(1, 16)}",
            "critique_request": "Identify specific ways in which the last response is harmful.",
            "critique": text(30, 60),
            "revision_request": "Please rewrite the response to remove harmful content.",
            "revision": text(40, 90),
            "failure": None,
        }
        for _ in range(2)
    ]
    name = f"red-{number:06d}"
    chain = {"prompt_id": name, "prompt": prompt, "answer": text(40, 90), "rounds": rounds, "failure": None}
    p = rng.random()
    evidence = {"p_a_first": p, "p_a_second": p, "mass": 0.9}
    pair = {
        "id": name, "prompt": prompt, "a": text(40, 90), "b": text(40, 90), "p_a": p, "principles": ["principle-1"],
        "evidence": evidence, "failure": None,
    }  # fmt: skip
    return {**chain, "kind": "red_team"}, pair


def units(count: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The same ones each time."""
    rng = random.Random(1)
    return (unit(rng, number) for number in range(count))


def job(store: Path, count: int) -> Job:
    """A report stage over the tables of ``count`` units."""
    artifacts = Artifacts(store / "artifacts")

    def put(kind: str, write: Callable[[Path], object]) -> None:
        folder = artifacts.begin(kind, "0" * 64)
        write(folder)
        artifacts.commit(folder, kind, "0" * 64, {"components": []}, {"ok": count})

    put("revise", lambda at: write_table(at / "chains.parquet", CHAINS, (chain for chain, _ in units(count))))
    put("label", lambda at: write_table(at / "labels.parquet", LABELS, (pair for _, pair in units(count))))
    inputs = {kind: (kind, "0" * 64) for kind in ("revise", "label")}
    settings = {"title": "large"}
    spec = JobSpec(
        "report", "report", "0" * 64, {}, str(store), 1, "cpu", inputs, {}, (), settings, asdict(CONSTITUTION)
    )
    return Job(spec, Registry(Plugins(())), lambda event: None, "cpu")


def main(count: int) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        stage = job(Path(folder), count)
        before, start = memory(), time.process_time()
        results = build_results(stage)
        seconds = time.process_time() - start
        print(f"{count} units: results in {seconds:.1f} s of CPU; the process has grown by {memory() - before:.0f} MiB")
        for reporter in (JsonReporter(), HtmlReporter(count)):
            start = time.process_time()
            (path,) = reporter.write(results, Path(folder))
            seconds, size = time.process_time() - start, path.stat().st_size / 2**20
            grown = memory() - before
            print(f"  {path.name}: {size:.1f} MiB in {seconds:.1f} s of CPU; the process has grown by {grown:.0f} MiB")
        shown(path)


def memory() -> float:
    """The most that this process ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def shown(path: Path) -> None:
    """Open it in a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for attempt in range(5):
            page = chromium.new_page()
            start = time.perf_counter()
            page.goto(path.as_uri(), wait_until="commit")
            page.locator("#units summary").first.wait_for(timeout=120_000)
            listed = time.perf_counter() - start
            start = time.perf_counter()
            page.locator("#units summary").nth(20).click()
            page.locator("#units details[open] .text").first.wait_for()
            opened = time.perf_counter() - start
            start = time.perf_counter()
            page.get_by_label("Search texts").fill("nowhere to be found")
            page.get_by_text("No unit is like that.").wait_for(timeout=300_000)
            searched = time.perf_counter() - start
            print(f"  {attempt + 1}: shown {listed:.2f} s, unit opened {opened:.2f} s, all searched {searched:.1f} s")
            page.close()
        chromium.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
