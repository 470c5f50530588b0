"""The paper's size: 182,831 prompts x 4 rounds of critique and revision with a scripted backend, 1.65 million calls; or
as many labels, in both orders.

    python tests/benchmarks/paper_size.py [--labels] [--prompts N] [--folder DIR]

runs `cai run` on a recipe of its own and prints calls per second, bytes on disk, and the memory of the stage's process
along the way: it must not grow with the number of prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROUNDS = 4
REVISE = f"""\
schema: 1
name: paper-size
constitution: harmless
models: {{base: smollm2-135m-instruct}}
backend: {{name: echo, reply: "Number {{seed}} is what I would say to that, and then {{seed}} more words."}}
prompts: {{name: jsonl, path: prompts.jsonl, heldout_share: 0.0}}
revise: {{rounds: {ROUNDS}}}
report: null
"""
LABEL = """\
schema: 1
name: paper-size
constitution: harmless
models: {base: smollm2-135m-instruct}
backend: {name: echo, reply: "(A)"}
pairs: {path: pairs.jsonl}
label: {labeler: {name: verdict}, audit: null}
report: null
"""


def write_prompts(path: Path, count: int) -> None:
    """Different prompts of about the length of hh-rlhf's."""
    rng = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = " ".join(rng.choices(words, k=20))
            file.write(json.dumps({"id": f"p{number}", "prompt": f"{text}?"}) + "\n")


def write_pairs(prompts: Path, path: Path) -> None:
    """Each prompt with two answers of 40 words of its own."""
    with prompts.open(encoding="utf-8") as given, path.open("w", encoding="utf-8") as file:
        for line in given:
            row = json.loads(line)
            words = row["prompt"].split() * 2
            rng = random.Random(row["id"])
            a, b = (" ".join(rng.sample(words, len(words))) for _ in range(2))
            file.write(json.dumps({**row, "a": a, "b": b}) + "\n")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=182_831)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--labels", action="store_true", help="the stage `label` in place of `revise`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_prompts(folder / "prompts.jsonl", args.prompts)
        (folder / "r.yaml").write_text(LABEL if args.labels else REVISE)
        command = [sys.executable, "-m", "cai_core.cli.main", "run", "r.yaml"]
        if args.labels:
            write_pairs(folder / "prompts.jsonl", folder / "pairs.jsonl")
            subprocess.run([*command, "--until", "pairs"], cwd=folder, stdout=subprocess.DEVNULL, check=True)
        start = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        began, memory = None, []
        while process.poll() is None:
            time.sleep(1.0)
            try:
                for child in psutil.Process(process.pid).children():
                    began = began or time.monotonic()
                    memory.append(child.memory_info().rss / 1e6)
            except psutil.Error:
                continue
        assert process.returncode == 0
        assert began is not None
        calls = args.prompts * (2 if args.labels else 1 + 2 * ROUNDS)
        took = time.monotonic() - began
        (artifact,) = (folder / ".cai/store/artifacts").glob("label-*" if args.labels else "revise-*")
        quarters = [round(max(memory[len(memory) * i // 4 : len(memory) * (i + 1) // 4])) for i in range(4)]
        print(f"{args.prompts:,} prompts, {calls:,} calls: planning {began - start:.0f} s, stage {took:.0f} s,")
        print(f"{calls / took:.0f} calls/s; most memory of the stage in each quarter of the time: {quarters} MB")
        print(f"ledger {size(folder / '.cai/store/ledger') / 1e9:.2f} GB, artifact {size(artifact) / 1e9:.2f} GB")
        print(json.loads((artifact / "manifest.json").read_text())["info"].get("notes", ""))


if __name__ == "__main__":
    main()
