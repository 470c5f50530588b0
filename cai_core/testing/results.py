"""The results of a run as reporters get them, with one text of your choice in every field that holds text."""

from __future__ import annotations

from typing import Any


def results(text: str = "plain words") -> dict[str, Any]:
    """Two models, every section there, each free text equal to ``text``."""

    def interval(value: float | None) -> dict[str, Any]:
        return {
            "value": value,
            "low": None if value is None else value - 0.1,
            "high": None if value is None else value + 0.1,
            "n": 0 if value is None else 20,
            "interval": text,
        }

    def metric(name: str, unit: str, direction: str, values: tuple[float | None, float | None]) -> dict[str, Any]:
        return {
            "id": name,
            "label": text,
            "evaluator": text,
            "direction": direction,
            "unit": unit,
            "note": text,
            "values": {m: {**interval(v), "failed": 1} for m, v in zip(("base", "sft"), values, strict=True)},
        }

    def turn() -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    failure = {"kind": "unparseable", "message": text}
    rounds = [
        {
            "principle_id": text,
            "critique_request": text,
            "critique": text,
            "revision_request": text,
            "revision": text,
            "failure": None,
        },
        {
            "principle_id": text,
            "critique_request": text,
            "critique": None,
            "revision_request": text,
            "revision": None,
            "failure": failure,
        },
    ]
    return {
        "schema": 1,
        "title": text,
        "status": "partial",
        "run": {"id": text, "recipe_name": text},
        "recipe_text": text,
        "findings": [{"level": level, "title": text, "text": text} for level in ("warning", "info")],
        "constitution": {
            "id": text,
            "version": text,
            "title": text,
            "digest": text,
            "principles": [{"id": text, "critique": text, "revision": text, "comparison": text}],
        },
        "models": [{"name": name, "label": text, "source": text, "digest": text} for name in ("base", "sft")],
        "metrics": [
            metric("hhh", "rate", "higher", (0.4, 0.6)),
            metric("words", "count", "none", (31.2, 28.0)),
            metric("score", "score", "lower", (0.1, None)),
        ],
        "comparisons": [
            {
                "metric": "hhh",
                "label": text,
                "a": "base",
                "b": "sft",
                "difference": 0.2,
                "low": -0.1,
                "high": 0.5,
                "n": 20,
                "p": 0.2,
                "p_holm": 0.4,
                "test": text,
                "conclusive": False,
                "minimum_detectable": None,
            }
        ],
        "audit": {
            "labeler": text,
            "settings": {text: text},
            "data": text,
            "n": 80,
            "failed": 1,
            "accuracy": interval(0.55),
            "flip_rate": interval(0.9),
            "mass": None,
            "mean_p_gap": interval(0.01),
            "length_baseline": interval(0.5),
            "longer_preferred": interval(0.5),
            "brier": interval(0.24),
            "calibration_error": None,
            "verdict": "at chance",
            "by_category": [{"category": text, "n": 40, "accuracy": interval(0.5)}],
            "rows": [{"id": text, "category": text, "p_better": 0.5, "p_better_first": 0.7, "p_better_second": None}],
        },
        "labels": {
            "n": 1,
            "failed": {"refusal": 1},
            "equal_answers": 1,
            "entropy": 0.69,
            "mean_p": 0.5,
            "mean_gap": 0.01,
            "mass": 0.9,
            "position_bias": None,
            "flip_rate": 1.0,
            "longer_preferred": 0.5,
            "length_slope": -0.01,
            "tie_rate": 0.1,
            "refusal_rate": 0.5,
            "unreadable_rate": 0.0,
            "disagreement": None,
            "by_principle": [
                {"id": text, "n": 1, "mean_gap": 0.1, "flip_rate": None, "agreement": None, "human_accuracy": 0.5}
            ],
            "by_people": False,
            "human": {"n": 1, "accuracy": 1.0, "calibration_error": 0.4, "brier": 0.16},
        },
        "reward_models": [
            {
                "stage": text,
                "component": text,
                "metrics": {text: 1.0},
                "sources": [{"name": text, "n": 12, "share_of_loss": 0.6}],
                "heldout": {
                    "n": 20,
                    "groups": [
                        {
                            "name": text,
                            "n": n,
                            "accuracy": interval(value),
                            "shorter_wins": interval(value),
                            "longer_wins": interval(value),
                            "brier": 0.2,
                            "calibration_error": 0.1,
                            "loss": 0.66,
                        }
                        for n, value in ((20, 0.6), (2, None))
                    ],
                    "differences": [{"id": "shorter_wins", "label": text, **interval(0.05)}],
                },
                "notes": [text],
            },
            {"stage": text, "component": text, "metrics": {}, "sources": [], "heldout": None, "notes": []},
        ],
        "chains": [
            {
                "prompt_id": name,
                "kind": "red_team",
                "prompt": turn(),
                "answer": answer,
                "rounds": some,
                "failure": failure,
            }
            for name, answer, some in ((text, text, rounds), ("p2", None, []))
        ],
        "pairs": [
            {
                "id": text,
                "prompt": turn(),
                "a": text,
                "b": text,
                "p_a": 0.6,
                "principles": [text],
                "evidence": {"p_a_first": 0.7, "p_a_second": 0.5, "mass": 0.9},
                "failure": None,
            },
            *(
                {
                    "id": f"other-{number}",
                    "prompt": turn(),
                    "a": text,
                    "b": text,
                    "p_a": 0.4,
                    "principles": [],
                    # Labelers say what they know; no key of it is sure to be there.
                    "evidence": evidence,
                    "failure": None,
                }
                for number, evidence in enumerate(({}, {"p_a_first": 0.5, "p_a_second": 0.3}, {"mass": 0.1}))
            ),
            {
                "id": "q2",
                "prompt": turn(),
                "a": text,
                "b": None,
                "p_a": None,
                "principles": [],
                "evidence": {},
                "failure": failure,
            },
        ],
        "curves": [
            {
                "id": "sft.loss",
                "title": text,
                "x_label": text,
                "y_label": text,
                "note": text,
                "series": [{"name": text, "x": [1, 2, 3], "y": [2.0, 1.5, 1.4]}],
            }
        ],
        "samples": [
            {"prompt_id": text, "kind": kind, "prompt": turn(), "answers": {"base": text, "sft": None}}
            for kind in ("red_team", "helpful", "borderline")
        ],
        "stages": [
            {
                "name": text,
                "kind": "revise",
                "status": "partial",
                "component": text,
                "digest": "ab" * 32,
                "seconds": 12.3,
                "peak_mb": 1200.0,
                "ok": 3,
                "failed": {"unparseable": 1},
                "tokens_in": 10,
                "tokens_out": 12,
                "notes": [text],
            },
            {
                "name": "prompts",
                "kind": "prompts",
                "status": "ok",
                "component": "",
                "digest": "cd" * 32,
                "seconds": None,
                "peak_mb": None,
                "ok": 3,
                "failed": {},
                "tokens_in": 0,
                "tokens_out": 0,
                "notes": [],
            },
        ],
        "provenance": {
            "cai_version": "0",
            "components": [{"id": text}],
            "seed": 1,
            "environment": {text: text},
            "data": [{"name": text, "digest": text, "n": 3}],
            "command": text,
        },
    }
