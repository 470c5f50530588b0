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
# Win rates against the first model come before ratings of the same judgements: they are known at equal length too.
WINS, CONTROLLED, RATINGS = "pairwise.win_rate.", "pairwise.win_rate_lc.", "pairwise.elo."


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
        yield _question(
            results, "Is it more harmless?", (f"{WINS}harmless", *HARMLESS), ("Yes", "No: it is less harmless")
        )
        yield _question(results, "Did it lose helpfulness?", (f"{WINS}helpful", *HELPFUL), ("No: it gained", "Yes"))
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
        "answer": f"{source}, with the {with_what}" if ran else "Nothing: this run trains no model",
        "text": f"{principles} principles. Trained: {steps}." if ran else f"{with_what}, {principles} principles.",
        "level": "info",
    }


def _question(
    results: Mapping[str, Any], question: str, names: Sequence[str], words: tuple[str, str]
) -> dict[str, str]:
    """Answered for each model that no other one was trained from: of branches each end is told."""
    parents = {model.get("parent") for model in results["models"]}
    others = results["models"][1:]
    ends = [model for model in others if model["name"] not in parents] or others  # none: the first is the end of all
    found = [(model["label"], *_answer(results, model, names, words)) for model in ends]
    answers = {answer: [label for label, told, *_ in found if told == answer] for _, answer, *_ in found}
    levels = {level for _, _, level, *_ in found}
    whose = ";\n".join(f"{', '.join(labels)}: {answer}" for answer, labels in answers.items())
    missed = dict.fromkeys(missed for *_, missed in found if missed)
    return {
        "question": question,
        "answer": whose if len(answers) > 1 else next(iter(answers)),
        "text": "\n".join([*(text for _, _, _, text, _ in found), *missed]),
        "level": "bad" if "bad" in levels else levels.pop() if len(levels) == 1 else "unsure",
    }


def _answer(
    results: Mapping[str, Any], model: Mapping[str, Any], names: Sequence[str], words: tuple[str, str]
) -> tuple[str, str, str, str]:
    """For one model against the first one: answer, level, evidence, and which difference would have been missed."""
    first = results["models"][0]
    metrics = [metric for metric in metrics_for(results, names) if metric["direction"] != "none"]
    found = [(metric, row) for metric in metrics if (row := _row(results, metric, first["name"], model["name"]))]
    if any(metric["id"].startswith(WINS) for metric, _ in found):
        # The same judgements as a rating: not a second witness.
        found = [(metric, row) for metric, row in found if not metric["id"].startswith(RATINGS)]
    if not found:
        text = f"No metric of this run compares {model['label']} with {first['label']} in this."
        return "Not measured", "unsure", text, ""
    better: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
    worse: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
    for metric, row in found:
        if row["conclusive"]:
            (better if (row["difference"] > 0) == (metric["direction"] == "higher") else worse).append((metric, row))
    if better and worse:
        answer, level, told = "The metrics disagree", "unsure", [*better, *worse]
    elif better or worse:
        answer, level, told = (words[0], "good", better) if better else (words[1], "bad", worse)
        if doubt := _doubt(told, model["name"], favours=bool(better)):
            answer, level = f"{answer}, {doubt}", "unsure"
    else:
        answer, level, told = "Cannot be told at this size", "unsure", found[:1]
    evidence = " ".join(_told(metric, row, model, first) for metric, row in told[:3])
    return answer, level, evidence, " ".join(filter(None, (_missed(metric, row) for metric, row in told[:3])))


def _doubt(told: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], model: str, *, favours: bool) -> str:
    """Why metrics that agree may not mean what they say, or nothing where one of them has no such flaw."""
    others = [
        row for metric, row in told if not (metric["id"].startswith(GIVEN_BY_TRAINING) and model.startswith("rl"))
    ]
    if not others:
        return "by the score it was trained on"
    if not all("controlled" in row for row in others):
        return ""
    for row in others:
        even = row["controlled"]
        if even["low"] is None:
            return "but nothing is known at equal length"
        value, surely = (even["value"], even["low"]) if favours else (1 - even["value"], 1 - even["high"])
        if surely > 0.5:
            return ""
        if value <= 0.5:
            return "but not at equal length"
    return "but at equal length it cannot be told"


def _row(results: Mapping[str, Any], metric: Mapping[str, Any], first: str, model: str) -> Mapping[str, Any] | None:
    if metric["id"].startswith(WINS):
        return _wins(results, metric, first, model)
    paired = (c for c in results["comparisons"] if c["metric"] == metric["id"] and c["b"] == model)
    return next(paired, None) or _unpaired(metric, first, model)


def _wins(results: Mapping[str, Any], metric: Mapping[str, Any], first: str, model: str) -> dict[str, Any] | None:
    """A win rate against the first model, from 50 %; with the rate at equal length. None where it is against another,
    which then has no rate of its own."""
    won = metric["values"].get(model)
    if first in metric["values"] or not won or won["low"] is None:
        return None
    controlled_id = metric["id"].replace(WINS, CONTROLLED)
    controlled = next((m["values"].get(model) for m in results["metrics"] if m["id"] == controlled_id), None)
    return {
        "difference": won["value"] - 0.5,
        "low": won["low"] - 0.5,
        "high": won["high"] - 0.5,
        "n": won["n"],
        "conclusive": not won["low"] <= 0.5 <= won["high"],
        "controlled": controlled or {"value": None, "low": None, "high": None},
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


def _told(metric: Mapping[str, Any], row: Mapping[str, Any], last: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    if "controlled" in row:
        told, even = f"{last['label']} {metric['label']}: {_rate(metric['values'][last['name']])}", row["controlled"]
        controlled = "" if even["value"] is None else f"; at equal length {_rate(even)}"
        return f"{told}{controlled}, n = {row['n']}."
    scale, digits, unit = difference_scale(metric["unit"])
    known = row["low"] is not None
    ends = ", ".join(f"{scale * row[key]:+.{digits}f}" for key in ("low", "high")) if known else "no interval"
    difference = f"{scale * row['difference']:+.{digits}f}{unit} [{ends}]"
    better = f" ({metric['direction']} is better)"
    return f"{metric['label']}{better}: {difference} for {last['label']} against {first['label']}, n = {row['n']}."


def _rate(found: Mapping[str, Any]) -> str:
    ends = "no interval" if found["low"] is None else f"{100 * found['low']:.1f}, {100 * found['high']:.1f}"
    return f"{100 * found['value']:.1f} % [{ends}]"


def _missed(metric: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What an inconclusive comparison would not have shown; nothing where that is not known."""
    least = row.get("minimum_detectable")
    if least is None or row["conclusive"]:
        return ""
    scale, digits, unit = difference_scale(metric["unit"])
    return f"A true difference under {scale * least:.{digits}f}{unit} would often be missed."


def difference_scale(unit: str) -> tuple[int, int, str]:
    """How a difference of a metric of this unit is written: factor, decimals and what stands after it."""
    scales = {"rate": (100, 1, " pp"), "count": (1, 1, "")}
    return scales.get(unit, (1, 3, ""))


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
