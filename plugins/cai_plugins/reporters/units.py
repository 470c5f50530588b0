"""Units for the explorer of a page: every prompt with all that happened to it, packed so that a browser opens 100,000
of them at once.

A unit is a list of blocks that the page's script knows how to draw: ``head``, ``text``, ``difference`` (word by word
against ``before``), ``sides``, ``facts``, ``failure``. Units stand in shards, each compressed (zlib) and in base64, in
data blocks that no browser runs; an index holds what is listed, filtered and sorted without opening a shard.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cai_plugins.reporters.words import plain, value

EACH = 200  # units in a shard: our choice; one opens in some milliseconds and 100,000 units are 500 shards
KINDS = {
    "train": "trained on",
    "red_team": "held out, harmful",
    "helpful": "held out, harmless",
    "borderline": "held out, borderline",
}
TITLE = 90  # characters of a harmless prompt in the list


@dataclass(slots=True)
class Unit:
    """What the list says of one unit, and its blocks. ``orders``: name -> number to sort by."""

    id: str
    kind: str
    title: str = ""
    tags: list[str] = field(default_factory=list)
    orders: dict[str, float] = field(default_factory=dict)
    blocks: list[dict[str, Any]] = field(default_factory=list)

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

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Names and values."""
        if found := [list(pair) for pair in pairs]:
            self.blocks.append({"type": "facts", "facts": found})

    def tag(self, name: str) -> None:
        """Something to filter by."""
        if name not in self.tags:
            self.tags.append(name)


@dataclass(frozen=True, slots=True)
class Packed:
    """What the page embeds: an index and shards, base64 each. ``there``: all units, ``shown``: those embedded."""

    index: str
    shards: tuple[str, ...]
    shown: int
    there: int


def pack(units: Sequence[Unit], cap: int, orders: Mapping[str, str]) -> Packed:
    """The first ``cap`` units. ``orders``: name -> "up" or "down", the direction that it sorts in."""
    shown = units[:cap]
    tags = {tag: number for number, tag in enumerate(sorted({tag for unit in shown for tag in unit.tags}))}
    kinds = {kind: number for number, kind in enumerate(dict.fromkeys(unit.kind for unit in shown))}
    named = [name for name in orders if any(name in unit.orders for unit in shown)]
    index = {
        "each": EACH,
        "kinds": [plain(kind) for kind in kinds],
        "tags": [plain(tag) for tag in tags],
        "orders": [[plain(name), orders[name]] for name in named],
        "units": [
            [unit.id, kinds[unit.kind], [tags[tag] for tag in unit.tags], unit.title, _sorted(unit, named)]
            for unit in shown
        ],
    }
    shards = (
        _packed([{"blocks": unit.blocks} for unit in shown[start : start + EACH]])
        for start in range(0, len(shown), EACH)
    )
    return Packed(_packed(index), tuple(shards), len(shown), len(units))


def _sorted(unit: Unit, names: Sequence[str]) -> list[float | None]:
    return [round(unit.orders[name], 4) if name in unit.orders else None for name in names]


def _packed(found: Any) -> str:
    text = json.dumps(_shown(found), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 6)).decode("ascii")


def _shown(found: Any) -> Any:
    if isinstance(found, str):
        return plain(found)
    if isinstance(found, list):
        return [_shown(item) for item in found]
    if isinstance(found, dict):
        return {key: _shown(item) for key, item in found.items()}
    return found


ORDERS = {
    "number of failures": "down",
    "change by the revisions": "down",
    "least sure label": "up",
    "surest label": "down",
    "longest answer": "down",
    "lowest score of the last model": "up",
}


def units_of(results: Mapping[str, Any]) -> list[Unit]:
    """One unit per prompt that was trained on or held out, and per item of an evaluator; in the order of the run."""
    units: dict[tuple[str, str], Unit] = {}
    for chain in results["chains"]:
        _chain(_unit(units, "train", chain["prompt_id"], chain["prompt"]), chain)
    for pair in results["pairs"]:
        _pair(_unit(units, "train", pair["id"], pair["prompt"]), pair)
    labels = {model["name"]: model["label"] for model in results["models"]}
    scores: dict[str, list[Mapping[str, Any]]] = {}
    for row in results.get("scores", ()):
        scores.setdefault(row["id"], []).append(row)
    for sample in results["samples"]:
        unit = _unit(units, sample["kind"], sample["prompt_id"], sample["prompt"])
        if sample["kind"] == "helpful" and sample["prompt"]:
            unit.title = str(sample["prompt"][-1]["content"])[:TITLE]
        sides = [[labels[name], sample["answers"][name], "no answer"] for name in labels if name in sample["answers"]]
        unit.blocks += [{"type": "head", "text": "Answers"}, {"type": "sides", "sides": sides}]
        unit.orders["longest answer"] = max((len(text or "") for _, text, _ in sides), default=0)
        _scores(unit, scores.pop(sample["prompt_id"], []), labels)
    for name, rows in scores.items():
        unit = units[rows[0]["evaluator"], name] = Unit(name, f"item of {rows[0]['evaluator']}")
        _item(unit, rows[0].get("item") or {})
        _scores(unit, rows, labels)
    for row in (results["audit"] or {}).get("rows", ()):
        unit = units.setdefault(("audit", row["id"]), Unit(row["id"], "audit of the judge"))
        _item(unit, {key: row.get(key) for key in ("prompt", "better", "worse", "category")})
        shown = (("P(better)", "p_better"), ("better shown first", "p_better_first"), ("second", "p_better_second"))
        unit.facts((label, value(row[key], "score")) for label, key in shown)
        if row["p_better"] is not None:
            unit.tag(
                "judge right" if row["p_better"] > 0.5 else "judge wrong" if row["p_better"] < 0.5 else "judge ties"
            )
            _sureness(unit, row["p_better"])
    for unit in units.values():
        unit.orders["number of failures"] = sum(block["type"] == "failure" for block in unit.blocks)
    return list(units.values())


def _unit(units: dict[tuple[str, str], Unit], kind: str, name: str, prompt: Sequence[Mapping[str, str]]) -> Unit:
    """The unit of this prompt, with its turns."""
    found = units.get((kind, name))
    if found is None:
        found = units[kind, name] = Unit(name, KINDS.get(kind, kind))
        found.turns(prompt)
    return found


def _chain(unit: Unit, chain: Mapping[str, Any]) -> None:
    before = chain["answer"]
    unit.text("first answer", before, "no answer")
    for number, draft in enumerate(chain["rounds"], start=1):
        unit.blocks.append({"type": "head", "text": f"Round {number}: {draft['principle_id']}"})
        unit.tag(str(draft["principle_id"]))
        if draft["critique"] is not None or draft["failure"]:
            unit.text("critique request", draft["critique_request"])
            unit.text("critique", draft["critique"], "no critique")
        if draft["revision"] is not None or draft["critique"] is not None:
            unit.text("revision request", draft["revision_request"])
            if draft["revision"] is None or before is None:
                unit.text("revision", draft["revision"], "no revision")
            else:
                label = "revision; underlined: new, struck out: gone"
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
    unit.blocks.append(
        {"type": "sides", "sides": [["answer A", pair["a"], "no answer"], ["answer B", pair["b"], "no answer"]]}
    )
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


def _scores(unit: Unit, rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> None:
    if not rows:
        return
    unit.blocks.append({"type": "head", "text": "Scores"})
    facts = []
    for row in rows:
        values = {key: found for key, found in row["values"].items() if not isinstance(found, (dict, list))}
        shown = ", ".join(
            f"{key} {found:.3g}" if isinstance(found, float) else f"{key} {found}" for key, found in values.items()
        )
        if shown:
            facts.append((f"{row['evaluator']}, {labels.get(row['model'], row['model'])}", shown))
        if row["values"].get("grade") not in (None, "comply"):
            unit.tag(f"{labels.get(row['model'], row['model'])}: {row['values']['grade']}")
    unit.facts(facts)
    for row in rows:
        unit.failure(row["failure"])
    last = list(labels)[-1] if labels else ""
    for row in rows:
        score = row["values"].get("score")
        if row["model"] == last and isinstance(score, (int, float)):
            unit.orders["lowest score of the last model"] = float(score)


COMPARED = {"largest change": "down", "worst for B": "up"}


def units_of_comparison(comparison: Mapping[str, Any]) -> list[Unit]:
    """One unit per item and metric whose value differs between the runs."""
    names = {row["metric"]: row["label"] for row in comparison["rows"]}
    signs = {row["metric"]: -1 if row["direction"] == "lower" else 1 for row in comparison["rows"]}
    units = []
    for change in comparison["changes"]:
        unit = Unit(change["id"], names[change["metric"]], tags=[change["verdict"]])
        unit.turns(change["prompt"] or [])
        _item(unit, change["item"] or {})
        if change["prompt"]:
            sides = [[f"run {key.upper()}", change[f"answer_{key}"], "no answer"] for key in ("a", "b")]
            unit.blocks.append({"type": "sides", "sides": sides})
        unit.facts([("value in run A", f"{change['a']:.4g}"), ("value in run B", f"{change['b']:.4g}")])
        unit.orders["largest change"] = abs(change["b"] - change["a"])
        unit.orders["worst for B"] = signs[change["metric"]] * (change["b"] - change["a"])
        units.append(unit)
    return units
