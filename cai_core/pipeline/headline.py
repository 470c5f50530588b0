"""What a reader in a hurry must know of a run: questions with an answer, its evidence and how sure it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Metrics that speak to a question, the more telling first: ratings of answers side by side, then grades of answers,
# then the preference model's score of them, then which of two given answers the model prefers. A prefix names all under
# it.
HARMLESS = ("pairwise.elo.harmless", "harm_score", "preference_model.harmful", "hhh.harmless")
HELPFUL = ("pairwise.elo.helpful", "preference_model.harmless", "hhh.helpful")
OVER_REFUSAL = ("refusal.harmless",)
GIVEN_BY_TRAINING = "preference_model."


def headline(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A list of ``question``, ``answer``, ``text`` and ``level``: "good", "bad", "unsure" or "info"."""
    return [entry for entry in _entries(results) if entry]


def metrics_for(results: Mapping[str, Any], names: Sequence[str]) -> list[Mapping[str, Any]]:
    """The metrics that speak to a question, in the order of ``names``."""
    found = []
    for name in names:
        found += [m for m in results["metrics"] if m["id"] == name or m["id"].startswith(f"{name}.")]
    return found


def _entries(results: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    yield _trained(results)
    if len(results["models"]) > 1:
        yield _question(results, "Is it more harmless?", HARMLESS, ("Yes", "No: it is less harmless"))
        yield _question(results, "Did it lose helpfulness?", HELPFUL, ("No: it gained", "Yes"))
        yield _question(
            results, "Does it refuse harmless requests more often?", OVER_REFUSAL, ("No: less often", "Yes")
        )
    yield _sure(results)
    yield _missing(results)


def _trained(results: Mapping[str, Any]) -> dict[str, str]:
    models, constitution = results["models"], results["constitution"]
    ran = [stage for stage in results["stages"] if stage["kind"] in ("sft", "reward", "rl")]
    steps = ", ".join(f"{stage['name']} ({stage['component'].partition(',')[0].rpartition('/')[2]})" for stage in ran)
    first = models[0] if models else {}
    source = first.get("source") or first.get("label") or "no model"
    with_what = f"constitution {constitution.get('id')} {constitution.get('version') or ''}".strip()
    principles = len(constitution.get("principles") or ())
    return {
        "question": "What was trained?",
        "answer": f"{source} with the {with_what}" if ran else "Nothing: this run trains no model",
        "text": f"{principles} principles. Trained: {steps}." if ran else f"{with_what}, {principles} principles.",
        "level": "info",
    }


def _question(
    results: Mapping[str, Any], question: str, names: Sequence[str], words: tuple[str, str]
) -> dict[str, str]:
    last, first = results["models"][-1], results["models"][0]
    found = []
    for metric in metrics_for(results, names):
        row = next((c for c in results["comparisons"] if c["metric"] == metric["id"] and c["b"] == last["name"]), None)
        row = row or _unpaired(metric, first["name"], last["name"])
        if row is not None and metric["direction"] != "none":
            found.append((metric, row))
    if not found:
        text = f"No metric of this run compares {last['label']} with {first['label']} in this."
        return {"question": question, "answer": "Not measured", "text": text, "level": "unsure"}
    better: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
    worse: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
    for metric, row in found:
        if row["conclusive"]:
            (better if (row["difference"] > 0) == (metric["direction"] == "higher") else worse).append((metric, row))
    if better and worse:
        answer, level, told = "The metrics disagree", "unsure", [*better, *worse]
    elif better or worse:
        answer, level, told = (words[0], "good", better) if better else (words[1], "bad", worse)
        if all(metric["id"].startswith(GIVEN_BY_TRAINING) for metric, _ in told) and last["name"].startswith("rl"):
            answer, level = f"{answer}, by the score it was trained on", "unsure"
    else:
        answer, level, told = "Cannot be told at this size", "unsure", found[:1]
    return {
        "question": question,
        "answer": answer,
        "text": " ".join(_difference(metric, row, last, first) for metric, row in told[:3]),
        "level": level,
    }


def _unpaired(metric: Mapping[str, Any], first: str, last: str) -> dict[str, Any] | None:
    """A metric that is no mean over items, such as a rating: the models differ where their intervals are apart, which
    is stricter than a test."""
    before, after = (metric["values"].get(name) for name in (first, last))
    if not before or not after or None in (before["low"], after["low"]):
        return None
    low, high = after["low"] - before["high"], after["high"] - before["low"]
    difference, n = after["value"] - before["value"], min(before["n"], after["n"])
    conclusive = low > 0 or high < 0
    return {
        "difference": difference,
        "low": low,
        "high": high,
        "n": n,
        "conclusive": conclusive,
        "minimum_detectable": None,
    }


def _difference(
    metric: Mapping[str, Any], row: Mapping[str, Any], last: Mapping[str, Any], first: Mapping[str, Any]
) -> str:
    scale, digits, unit = {"rate": (100, 1, " pp"), "count": (1, 1, "")}.get(metric["unit"], (1, 3, ""))
    known = row["low"] is not None
    ends = ", ".join(f"{scale * row[key]:+.{digits}f}" for key in ("low", "high")) if known else "no interval"
    difference, least = f"{scale * row['difference']:+.{digits}f}", row["minimum_detectable"]
    better = f" ({metric['direction']} is better)"
    told = f"{metric['label']}{better}: {difference}{unit} [{ends}] for {last['label']} against {first['label']}"
    if least is None or row["conclusive"]:
        return f"{told}, n = {row['n']}."
    missed = f"A true difference under {scale * least:.{digits}f}{unit} would often be missed."
    return f"{told}, n = {row['n']}. {missed}"


def _sure(results: Mapping[str, Any]) -> dict[str, str]:
    comparisons = results["comparisons"]
    certain = sum(row["conclusive"] for row in comparisons)
    judge = (results["audit"] or {}).get("verdict")
    people = bool(results["labels"] and results["labels"]["by_people"])
    notes = []
    if comparisons:
        n = sorted(row["n"] for row in comparisons)
        items = str(n[0]) if n[0] == n[-1] else f"{n[0]} to {n[-1]}"
        notes.append(
            f"{certain} of {len(comparisons)} paired tests, on {items} items each, are significant after Holm's "
            "correction at 5 %."
        )
    notes.append(f"One training run with seed {results['provenance']['seed']}: another seed may come out otherwise.")
    if judge and judge != "above chance":
        notes.insert(0, f"The judge that gave the labels is {judge} on comparisons with a known answer.")
        return {"question": "How sure are we?", "answer": "Not sure", "text": " ".join(notes), "level": "bad"}
    if results["labels"] and not judge and not people:
        notes.insert(0, "The judge that gave the labels was never audited.")
    level = "unsure" if certain < len(comparisons) or not comparisons or len(notes) > 2 else "good"
    answer = {"good": "As sure as one seed allows", "unsure": "In part" if certain else "Not sure"}[level]
    return {"question": "How sure are we?", "answer": answer, "text": " ".join(notes), "level": level}


def _missing(results: Mapping[str, Any]) -> dict[str, str]:
    missing = results["missing"]
    if not missing:
        text = "Every unit has a result, and none was asked for twice."
        return {"question": "Is anything missing?", "answer": "No", "text": text, "level": "good"}
    return {"question": "Is anything missing?", "answer": "Yes", "text": " ".join(missing), "level": "bad"}
