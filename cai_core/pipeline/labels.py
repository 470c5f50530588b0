"""What a reader must know about a set of labels, and about the labeler that gave them."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cai_core.calibration import accuracy, brier, calibration_error, length_slope
from cai_core.intervals import wilson
from cai_core.pipeline.tables import LABELS
from cai_core.store.artifacts import Artifact
from cai_core.store.tables import read_table
from cai_core.types.labeler import GIVEN
from cai_core.types.records import conversation
from cai_core.types.reward import Preference

CHANCE = 0.5  # two options
# Our choices. A coin tossed for each order changes its answer in about half of the pairs; where one order alone was
# asked, half of the largest bias that there can be (0.5) is much; labels that follow length in nine of ten pairs are a
# ruler's; under half of the mass on the letters the judge wants to say something else; and a fifth of pairs without a
# label is no longer a random part. Fewer pairs than 20 show none of it.
MOST_FLIPS = 0.4
MOST_BIAS = 0.25
MOST_LENGTH = 0.9
LEAST_MASS = 0.5
MOST_FAILED = 0.2
LEAST_PAIRS = 20
LEAST_GAP = 0.01  # mean distance from 0.5; a label of 0.51 moves a preference model as little as 0.5 does

SHOWN = (
    ("entropy", "entropy (nats; 0.693 says nothing)", "{:.3f}"),
    ("mean_gap", "mean distance of a label from 0.5", "{:.4f}"),
    ("mass", "probability on the two letters", "{:.1%}"),
    ("position_bias", "position bias (0: none)", "{:+.3f}"),
    ("flip_rate", "answers that change with the order", "{:.1%}"),
    ("flips_to_first", "of these, to what is shown first", "{:.1%}"),
    ("tie_rate", "ties", "{:.1%}"),
    ("refusal_rate", "refused by the judge", "{:.1%}"),
    ("unreadable_rate", "unreadable", "{:.1%}"),
    ("longer_preferred", "the longer answer is preferred", "{:.1%}"),
    ("length_slope", "change of p when twice as long", "{:+.4f}"),
    ("disagreement", "disagreement (standard deviation)", "{:.4f}"),
)


_MEANS = (
    "entropy", "mean_p", "mean_gap", "mass", "position_bias", "flip_rate", "flips_to_first", "tie_rate",
    "refusal_rate", "unreadable_rate", "longer_preferred", "disagreement",
)  # fmt: skip


def label_statistics(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The statistics of labelled pairs (rows of ``labels.parquet``); each is null where nothing is known. The rows are
    read once, one at a time, and no text is kept.

    n: labels. failed: pairs without one, by kind. equal_answers: pairs whose answers are the same; what follows is of
    the others, since nothing can be preferred to itself. entropy: mean binary entropy in nats (0.693 = no opinion).
    mean_p, mean_gap: mean of P(A preferred) and of its distance from 0.5. mass: mean probability on the two letters.
    position_bias: mean of P(first shown preferred) - 0.5. flip_rate: share of pairs, asked in both orders, whose
    preferred answer changes with the order; an order without a preference changes nothing. flips_to_first: share of
    those that preferred what was shown first both times. tie_rate, refusal_rate,
    unreadable_rate: of all comparisons that were judged, those whose judge called a tie (a label of exactly 0.5
    counts too), refused, or could not be read. longer_preferred: share of labels other than 0.5, answers of unequal
    length, that prefer the longer one. length_slope: change of p when an answer is twice as long as the other.
    disagreement: mean standard deviation over the principles or members of one comparison.

    by_principle: for each its number of labels, mean_gap, flip_rate (null where several principles judged together),
    agreement (share of pairs, judged by several principles, where its own preference is that of the label), and
    human_accuracy. human: n, accuracy, calibration_error and brier against people's labels.
    """
    n = equal = 0
    failed = Counter[str]()
    found: dict[str, list[float]] = {key: [] for key in _MEANS}
    a: list[int] = []
    b: list[int] = []
    people: list[tuple[float, float]] = []
    principles: dict[str, _Principle] = defaultdict(_Principle)
    for row in rows:
        p, evidence, given = row.get("p_a"), _evidence(row), _given(row)
        n += p is not None
        if row.get("failure"):
            failed[row["failure"]["kind"]] += 1
        if row["a"] is not None and row["a"] == row["b"]:
            equal += 1
            continue
        # A pair that failed before it came to the judge has no evidence; the judge is not to blame for it.
        if p is not None or row.get("evidence") is not None:
            found["tie_rate"].append(p == 0.5 if p is not None else _said_tie(row))
            found["refusal_rate"].append(_failed(row, "refusal"))
            found["unreadable_rate"].append(_failed(row, "unparseable") and not _said_tie(row))
        if p is None:
            continue
        found["mean_p"].append(p)
        found["mean_gap"].append(abs(p - 0.5))
        found["entropy"].append(_entropy(p))
        a.append(len(row["a"]))
        b.append(len(row["b"]))
        if p != 0.5 and a[-1] != b[-1]:
            found["longer_preferred"].append((p > 0.5) == (a[-1] > b[-1]))
        flip = _flip(row)
        known = {"mass": evidence.get("mass"), "disagreement": evidence.get("disagreement")}
        known |= {"position_bias": _bias(row), "flip_rate": flip}
        for key, value in known.items():
            if value is not None:
                found[key].append(value)
        if flip:
            found["flips_to_first"].append(evidence["p_a_first"] > 0.5)
        if "human" in given:
            people.append((p, given["human"]))
        for name in row.get("principles") or ():
            principles[name].add(name, row)
    return {
        "n": n,
        "equal_answers": equal,
        "failed": dict(sorted(failed.items())),
        **{key: _mean(values) for key, values in found.items()},
        "length_slope": length_slope(found["mean_p"], a, b),
        "by_principle": [{"id": name, **entry.statistics()} for name, entry in sorted(principles.items())],
        "human": _against_people(people),
    }


def label_warnings(statistics: Mapping[str, Any]) -> list[str]:
    """What in these statistics should stop a reader, one sentence each; the thresholds are at the top of this file."""
    n, failed = statistics["n"], sum(statistics["failed"].values())
    found = []
    if not n:
        return ["No pair has a label."] if failed else []
    if failed > MOST_FAILED * (n + failed):
        kinds = ", ".join(f"{count} {kind}" for kind, count in statistics["failed"].items())
        found.append(f"{failed} of {n + failed} pairs have no label ({kinds}); the others may be a biased part.")
    if n - statistics["equal_answers"] < LEAST_PAIRS:
        return found
    flips, bias, longer = (statistics[key] for key in ("flip_rate", "position_bias", "longer_preferred"))
    if flips is not None and flips > MOST_FLIPS:
        first, changed = statistics["flips_to_first"], round(flips * (n - statistics["equal_answers"]))
        low, high = wilson(first * changed, changed)
        if low <= 0.5 <= high:
            found.append(
                f"The judge contradicts itself: its answer changes with the order in {flips:.0%} of the pairs, to the "
                "first as to the second, as a coin would."
            )
        else:
            found.append(
                f"The judge goes by position: its answer changes with the order in {flips:.0%} of the pairs "
                f"(it likes what is shown {'first' if first > 0.5 else 'second'})."
            )
    elif flips is None and bias is not None and abs(bias) > MOST_BIAS:
        found.append(f"The judge goes by position ({bias:+.2f}), and only one order was asked: set `swap: true`.")
    if longer is not None and not 1 - MOST_LENGTH < longer < MOST_LENGTH:
        which = "longer" if longer > 0.5 else "shorter"
        found.append(f"The labels follow length: the {which} answer is preferred in {max(longer, 1 - longer):.0%}.")
    if statistics["mean_gap"] < LEAST_GAP:
        found.append(f"The labels say next to nothing: they are {statistics['mean_gap']:.4f} away from 0.5 on average.")
    if statistics["mass"] is not None and statistics["mass"] < LEAST_MASS:
        found.append(
            f"Only {statistics['mass']:.0%} of the judge's probability is on the two letters: it wants to say "
            "something else; try the other `format`."
        )
    return found


def statistics_lines(statistics: Mapping[str, Any], *, principles: bool = True) -> Iterator[str]:
    """The statistics for a terminal; ``principles``: each of them too."""
    reasons = ", ".join(f"{count} {kind}" for kind, count in statistics["failed"].items())
    equal = statistics["equal_answers"]
    yield f"{statistics['n']} labels" + (f"; without one: {reasons}" if reasons else "")
    if equal:
        yield f"  pairs with equal answers, left out below: {equal}"
    for key, name, form in SHOWN:
        if statistics.get(key) is not None:
            yield f"  {name:<40} {form.format(statistics[key])}"
    if human := statistics["human"]:
        parts = [f"accuracy {human['accuracy']:.1%}"] if human["accuracy"] is not None else []
        parts += [f"calibration error {human['calibration_error']:.3f}", f"Brier {human['brier']:.3f}"]
        yield f"  {'against ' + str(human['n']) + ' labels of people':<40} {', '.join(parts)}"
    for entry in statistics["by_principle"] if principles else ():
        parts = [f"n {entry['n']}", f"distance from 0.5 {entry['mean_gap']:.4f}"]
        for key, name in (("agreement", "agrees with the label"), ("human_accuracy", "accuracy")):
            if entry[key] is not None:
                parts.append(f"{name} {entry[key]:.1%}")
        yield f"  {entry['id']:<40} {', '.join(parts)}"


# what is learnt from, and the audit ----------------------------------------------------------------------------------


def preferences(labels: Artifact) -> tuple[list[Preference], int]:
    """The labelled pairs of a stage ``label``, in its order, and how many of its pairs have no label."""
    source = "human" if by_people(use["id"] for use in labels.identity["components"]) else "ai"
    rows = [
        None if row["p_a"] is None else _preference(row, source)
        for row in read_table(labels.path / "labels.parquet", LABELS)
    ]
    found = [row for row in rows if row is not None]
    return found, len(rows) - len(found)


def _preference(row: Mapping[str, Any], source: str) -> Preference:
    """``source``: of pairs whose file names none."""
    given = _given(row)
    prompt = conversation(row["prompt"])
    named, weight = given.get("source") or source, given.get("weight", 1.0)
    return Preference(row["id"], prompt, row["a"], row["b"], row["p_a"], source=named, weight=weight)


def by_people(components: Iterable[str]) -> bool:
    """Whether the components (full ids) of a stage ``label`` read people's labels from a file: then there is no judge
    to audit."""
    return "cai-core/human" in components


def audit_verdict(accuracy: Mapping[str, Any]) -> str:
    """Is the judge better than a coin? Only an interval that excludes 50 % says so. ``accuracy``: the metric."""
    if accuracy["low"] is None:
        return "at chance"
    if accuracy["low"] > CHANCE:
        return "above chance"
    return "below chance" if accuracy["high"] < CHANCE else "at chance"


def audit_accuracy(artifact: Artifact) -> dict[str, Any]:
    """The metric ``audit.accuracy`` of an audit's artifact, with its ``verdict``."""
    metrics = json.loads((artifact.path / "metrics.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = next(metric for metric in metrics if metric["id"] == "audit.accuracy")
    return {**found, "verdict": audit_verdict(found)}


def audit_flag(accuracy: Mapping[str, Any]) -> str | None:
    """The warning that a labeler deserves, or None where it is above chance."""
    if accuracy["verdict"] == "above chance":
        return None
    if accuracy["value"] is None:
        return f"the labeler could not be measured: all {accuracy['failed']} comparisons of the audit failed"
    failed = f", {accuracy['failed']} failed" if accuracy["failed"] else ""
    return (
        f"the labeler is {accuracy['verdict']}: right in {accuracy['value']:.1%} "
        f"[{accuracy['low']:.1%}, {accuracy['high']:.1%}] of {accuracy['n']} comparisons with a known answer{failed}. "
        "Nothing shows that its labels carry a signal; use a larger judge"
    )


# ---------------------------------------------------------------------------------------------------------------------


class _Principle:
    """What is known of the labels that one principle gave, alone or with others."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.flips: list[float] = []
        self.together: list[tuple[float, float]] = []  # its own label and that of all
        self.people: list[tuple[float, float]] = []

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        own = (_evidence(row).get("by_principle") or {}).get(name, row["p_a"])
        self.gaps.append(abs(own - 0.5))
        if len(row["principles"]) > 1 and row["p_a"] != 0.5:
            self.together.append((own, row["p_a"]))
        if len(row["principles"]) == 1 and (flip := _flip(row)) is not None:
            self.flips.append(flip)
        if "human" in (given := _given(row)):
            self.people.append((own, given["human"]))

    def statistics(self) -> dict[str, Any]:
        return {
            "n": len(self.gaps),
            "mean_gap": _mean(self.gaps),
            "flip_rate": _mean(self.flips),
            "agreement": accuracy([p for p, _ in self.together], [p for _, p in self.together]),
            "human_accuracy": (_against_people(self.people) or {}).get("accuracy"),
        }


def _against_people(known: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """``known``: labels, and people's labels of the same pairs."""
    if not known:
        return None
    p, target = [p for p, _ in known], [t for _, t in known]
    return {
        "n": len(known),
        "accuracy": accuracy(p, target),
        "calibration_error": calibration_error(p, target),
        "brier": brier(p, target),
    }


def _evidence(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row.get("evidence") or {}


def _given(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the file of the pairs says of this one; never what the labeler says."""
    found: Mapping[str, Any] = _evidence(row).get(GIVEN) or {}
    return found


def _failed(row: Mapping[str, Any], kind: str) -> bool:
    return bool(row.get("failure")) and row["failure"]["kind"] == kind


def _said_tie(row: Mapping[str, Any]) -> bool:
    return bool(_evidence(row).get("tie"))


def _bias(row: Mapping[str, Any]) -> float | None:
    evidence = _evidence(row)
    first = [float(evidence["p_a_first"])] if "p_a_first" in evidence else []
    if "p_a_second" in evidence:  # A was shown second
        first.append(1 - float(evidence["p_a_second"]))
    return sum(first) / len(first) - 0.5 if first else None


def _flip(row: Mapping[str, Any]) -> bool | None:
    evidence = _evidence(row)
    if "p_a_first" not in evidence or "p_a_second" not in evidence:
        return None
    return bool((float(evidence["p_a_first"]) - 0.5) * (float(evidence["p_a_second"]) - 0.5) < 0)


def _entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
