"""Units for the explorer of a page: every prompt with all that happened to it, packed so that a browser opens 100,000
of them at once.

A unit is a list of blocks that the page's script knows how to draw: ``head``, ``text``, ``difference`` (word by word
against ``before``), ``sides``, ``facts``, ``failure``. Units stand in shards, each compressed (zlib) and in base64, in
data blocks that no browser runs; an index holds what is listed, filtered and sorted without opening a shard. What
happened to one prompt stands in several tables, so that blocks wait in a file until all are there.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from markupsafe import Markup

from cai_plugins.reporters.words import plain, value

EACH = 200  # units in a shard: our choice; one opens in some milliseconds and 100,000 units are 500 shards
KINDS = {
    "train": "trained on",
    "red_team": "held out, harmful",
    "helpful": "held out, harmless",
    "borderline": "held out, borderline",
}
TITLE = 90  # characters of a harmless prompt in the list
FAILURES = "number of failures"
CUT = "cut at the token limit"


@dataclass(slots=True)
class Unit:
    """What the list says of one unit, and blocks on their way to the disk. ``orders``: name -> number to sort by."""

    id: str
    kind: str
    title: str = ""
    tags: list[str] = field(default_factory=list)
    orders: dict[str, float] = field(default_factory=lambda: {FAILURES: 0})
    blocks: list[dict[str, Any]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # of blocks in the file

    def text(self, label: str, text: str | None, missing: str = "no text") -> None:
        """A labelled text."""
        self.blocks.append({"type": "text", "label": label, "text": text, "missing": missing})

    def turns(self, messages: Sequence[Mapping[str, str]]) -> None:
        """A conversation."""
        for turn in messages:
            self.text(str(turn["role"]), str(turn["content"]))

    def failure(self, found: Mapping[str, Any] | None) -> None:
        """Why something is not there."""
        if found:
            self.blocks.append({"type": "failure", "kind": str(found["kind"]), "text": str(found["message"])})
            self.tag(f"failed: {found['kind']}")
            self.orders[FAILURES] += 1

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Names and values."""
        if found := [list(pair) for pair in pairs]:
            self.blocks.append({"type": "facts", "facts": found})

    def cut(self, label: str, tokens: int | None) -> str:
        """``label`` of a text, with how many tokens it was cut at, if it was and that is known."""
        if not tokens:
            return label
        self.tag(CUT)
        return f"{label}, cut at {tokens} tokens"

    def tag(self, name: str) -> None:
        """Something to filter by."""
        if name not in self.tags:
            self.tags.append(sys.intern(name))  # some few, on 100,000 units


class Units:
    """The first ``cap`` units, in the order in which they came; those beyond are counted. ``orders``: name -> "up" or
    "down", the direction that it sorts in. The texts are in a file without a name in ``folder``."""

    def __init__(self, cap: int, orders: Mapping[str, str], folder: Path) -> None:
        self.cap = cap
        self.orders = orders
        self.known: dict[tuple[str, str], Unit] = {}
        self._beyond: set[tuple[str, str]] = set()
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def there(self) -> int:
        """How many units there are."""
        return len(self.known) + len(self._beyond)

    @property
    def shown(self) -> int:
        """How many of them the page holds."""
        return len(self.known)

    @contextmanager
    def unit(self, group: str, name: str, kind: str, prompt: Sequence[Mapping[str, str]] = ()) -> Iterator[Unit]:
        """The unit of this name, to add to; a new one begins with ``prompt``."""
        found = self.known.get((group, name))
        if found is None:
            found = Unit(name, kind)
            found.turns(prompt)
            if len(self.known) < self.cap:
                self.known[group, name] = found
            else:
                self._beyond.add((group, name))
        yield found
        if found.blocks and (group, name) not in self._beyond:
            found.places.append(self._file.tell())
            self._file.write(_json(found.blocks)[1:-1].encode("utf-8") + b"\n")
        found.blocks.clear()

    def index(self) -> Markup:
        """What is listed, in base64: one array per column, which a browser reads many times as fast as one per unit."""
        units = self.known.values()
        tags = {tag: number for number, tag in enumerate(sorted({tag for unit in units for tag in unit.tags}))}
        kinds = {kind: number for number, kind in enumerate(dict.fromkeys(unit.kind for unit in units))}
        named = [name for name in self.orders if any(name in unit.orders for unit in units)]
        columns = {
            "each": EACH,
            "kinds": list(kinds),
            "tags": list(tags),
            "orders": [[name, self.orders[name]] for name in named],
            "id": [unit.id for unit in units],
            "kind": [kinds[unit.kind] for unit in units],
            "tagged": [",".join(str(tags[tag]) for tag in unit.tags) for unit in units],
            "title": [unit.title for unit in units],
            "by": [[_order(unit, name) for unit in units] for name in named],
        }
        return _compressed([_json(columns)])

    def shards(self) -> Iterator[Markup]:
        """The blocks of ``EACH`` units after the other, in base64."""
        units = list(self.known.values())
        for start in range(0, len(units), EACH):
            yield _compressed(_joined("[", map(self._blocks, units[start : start + EACH]), "]"))

    def _blocks(self, unit: Unit) -> str:
        lines = []
        for place in unit.places:
            self._file.seek(place)
            lines.append(self._file.readline()[:-1].decode("utf-8"))
        return f'{{"blocks":[{",".join(lines)}]}}'


def _order(unit: Unit, name: str) -> float | None:
    return round(unit.orders[name], 4) if name in unit.orders else None


def _json(found: Any) -> str:
    return json.dumps(_shown(found), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _joined(head: str, parts: Iterable[str], end: str) -> Iterator[str]:
    """``head``, the parts with commas between them, and ``end``."""
    yield head
    for number, part in enumerate(parts):
        yield f",{part}" if number else part
    yield end


def _compressed(parts: Iterable[str]) -> Markup:
    packer = zlib.compressobj(6)
    found = b"".join([*(packer.compress(part.encode("utf-8")) for part in parts), packer.flush()])
    return Markup(base64.b64encode(found).decode("ascii"))  # has nothing to escape


def _shown(found: Any) -> Any:
    if isinstance(found, str):
        return plain(found)
    if isinstance(found, list):
        return [_shown(item) for item in found]
    if isinstance(found, dict):
        return {key: _shown(item) for key, item in found.items()}
    return found


ORDERS = {
    FAILURES: "down",
    "change by the revisions": "down",
    "least sure label": "up",
    "surest label": "down",
    "longest answer": "down",
    "lowest score of the last model": "up",
}


def add_results(units: Units, results: Mapping[str, Any]) -> None:
    """One unit per prompt that was trained on or held out, and per item of an evaluator; in the order of the run."""
    for chain in results["chains"]:
        with units.unit("train", chain["prompt_id"], KINDS["train"], chain["prompt"]) as unit:
            _chain(unit, chain)
    for pair in results["pairs"]:
        with units.unit("train", pair["id"], KINDS["train"], pair["prompt"]) as unit:
            _pair(unit, pair)
    labels = {model["name"]: model["label"] for model in results["models"]}
    groups: dict[str, str] = {}  # of the units of held-out prompts and of items
    kinds: dict[str, str] = {}
    for sample in results["samples"]:
        name, kind = sample["prompt_id"], sample["kind"]
        groups.setdefault(name, kind)
        kinds[name] = KINDS.get(kind, kind)
        with units.unit(kind, name, kinds[name], sample["prompt"]) as unit:
            if kind == "helpful" and sample["prompt"]:
                unit.title = str(sample["prompt"][-1]["content"])[:TITLE]
            answers = sample["answers"]
            cut_at = sample.get("cut_at") or {}
            sides = [
                [unit.cut(labels[model], cut_at.get(model)), answers[model], "no answer"]
                for model in labels
                if model in answers
            ]
            unit.blocks += [{"type": "head", "text": "Answers"}, {"type": "sides", "sides": sides}]
            unit.orders["longest answer"] = max((len(text or "") for _, text, _ in sides), default=0)
    scored: set[str] = set()
    for row in results.get("scores", ()):
        name = row["id"]
        group = groups.setdefault(name, row["evaluator"])
        with units.unit(group, name, kinds.get(name, f"item of {group}")) as unit:
            if name not in scored:
                scored.add(name)
                _item(unit, row.get("item") or {})
                unit.blocks.append({"type": "head", "text": "Scores"})
            _score(unit, row, labels)
    for row in (results["audit"] or {}).get("rows", ()):
        with units.unit("audit", row["id"], "audit of the judge") as unit:
            _item(unit, {key: row.get(key) for key in ("prompt", "better", "worse", "category")})
            shown = (("P(better)", "p_better"), ("better shown first", "p_better_first"), ("second", "p_better_second"))
            unit.facts((label, value(row[key], "score")) for label, key in shown)
            if row["p_better"] is not None:
                unit.tag(
                    "judge right" if row["p_better"] > 0.5 else "judge wrong" if row["p_better"] < 0.5 else "judge ties"
                )
                _sureness(unit, row["p_better"])


def _chain(unit: Unit, chain: Mapping[str, Any]) -> None:
    before = chain["answer"]
    unit.text(unit.cut("first answer", chain.get("cut_at")), before, "no answer")
    for number, draft in enumerate(chain["rounds"], start=1):
        unit.blocks.append({"type": "head", "text": f"Round {number}: {draft['principle_id']}"})
        unit.tag(str(draft["principle_id"]))
        if draft["critique"] is not None or draft["failure"]:
            unit.text("critique request", draft["critique_request"])
            unit.text(unit.cut("critique", draft.get("critique_cut_at")), draft["critique"], "no critique")
        if draft["revision"] is not None or draft["critique"] is not None:
            unit.text("revision request", draft["revision_request"])
            label = unit.cut("revision", draft.get("revision_cut_at"))
            if draft["revision"] is None or before is None:
                unit.text(label, draft["revision"], "no revision")
            else:
                label = f"{label}; underlined: new, struck out: gone"
                block = {"type": "difference", "label": label, "text": draft["revision"], "before": before}
                unit.blocks.append(block)
        unit.failure(draft["failure"])
        before = before if draft["revision"] is None else draft["revision"]
        if "change" in draft and draft["change"] is not None:
            highest = max(unit.orders.get("change by the revisions", 0.0), draft["change"])
            unit.orders["change by the revisions"] = highest
    if not chain["rounds"]:
        unit.failure(chain["failure"])


def _pair(unit: Unit, pair: Mapping[str, Any]) -> None:
    unit.blocks.append({"type": "head", "text": "Labelled pair"})
    cut_at = pair.get("cut_at") or {}
    sides = [[unit.cut(f"answer {key.upper()}", cut_at.get(key)), pair[key], "no answer"] for key in ("a", "b")]
    unit.blocks.append({"type": "sides", "sides": sides})
    facts = [("P(A is preferred)", value(pair["p_a"], "score"))]
    if pair["principles"]:
        facts.append(("principles", ", ".join(map(str, pair["principles"]))))
    for key, found in pair["evidence"].items():
        if key != "principles":
            facts.append((str(key), _fact(found)))
    unit.facts(facts)
    for principle in pair["principles"]:
        unit.tag(str(principle))
    if pair["p_a"] is not None:
        _sureness(unit, pair["p_a"])
    unit.failure(pair["failure"])


def _fact(found: Any) -> str:
    if isinstance(found, str):
        return found
    return f"{found:.4g}" if isinstance(found, float) else json.dumps(found, ensure_ascii=False)


def _sureness(unit: Unit, p: float) -> None:
    unit.orders["least sure label"] = unit.orders["surest label"] = abs(p - 0.5)


def _item(unit: Unit, item: Mapping[str, Any]) -> None:
    for key, found in item.items():
        if isinstance(found, str):
            unit.text(str(key), found)
        elif isinstance(found, list) and all(
            isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in found
        ):
            unit.turns(found)
        elif found is not None:
            unit.facts([(str(key), json.dumps(found, ensure_ascii=False))])


def _score(unit: Unit, row: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    model = labels.get(row["model"], row["model"])
    values = {key: found for key, found in row["values"].items() if not isinstance(found, (dict, list))}
    shown = ", ".join(
        f"{key} {found:.3g}" if isinstance(found, float) else f"{key} {found}" for key, found in values.items()
    )
    if shown:
        unit.facts([(f"{row['evaluator']}, {model}", shown)])
    if values.get("grade") not in (None, "comply"):
        unit.tag(f"{model}: {values['grade']}")
    unit.failure(row["failure"])
    score = values.get("score")
    if labels and row["model"] == list(labels)[-1] and isinstance(score, (int, float)):
        unit.orders["lowest score of the last model"] = float(score)


COMPARED = {"largest change": "down", "worst for B": "up"}


def add_comparison(units: Units, comparison: Mapping[str, Any]) -> None:
    """One unit per item and metric whose value differs between the runs."""
    names = {row["metric"]: row["label"] for row in comparison["rows"]}
    signs = {row["metric"]: -1 if row["direction"] == "lower" else 1 for row in comparison["rows"]}
    for number, change in enumerate(comparison["changes"]):
        with units.unit(f"{number}", change["id"], names[change["metric"]], change["prompt"] or ()) as unit:
            unit.tag(change["verdict"])
            _item(unit, change["item"] or {})
            if change["prompt"]:
                sides = [[f"run {key.upper()}", change[f"answer_{key}"], "no answer"] for key in ("a", "b")]
                unit.blocks.append({"type": "sides", "sides": sides})
            unit.facts([("value in run A", f"{change['a']:.4g}"), ("value in run B", f"{change['b']:.4g}")])
            unit.orders["largest change"] = abs(change["b"] - change["a"])
            unit.orders["worst for B"] = signs[change["metric"]] * (change["b"] - change["a"])
