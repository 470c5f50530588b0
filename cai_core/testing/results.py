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
            "critique_cut_at": 0,
            "revision_request": text,
            "revision": text,
            "revision_cut_at": 48,
            "failure": None,
            "change": 0.3,
        },
        {
            "principle_id": text,
            "critique_request": text,
            "critique": None,
            "critique_cut_at": None,
            "revision_request": text,
            "revision": None,
            "revision_cut_at": None,
            "failure": failure,
            "change": None,
        },
    ]
    return {
        "schema": 1,
        "title": text,
        "status": "partial",
        "run": {"id": text, "recipe_name": text},
        "recipe_text": text,
        "findings": [{"level": level, "title": text, "text": text} for level in ("warning", "info")],
        "headline": [
            {"question": text, "answer": text, "text": text, "level": level}
            for level in ("good", "bad", "unsure", "info")
        ],
        "missing": [text],
        "frontier": {
            **{
                axis: {"id": axis, "label": text, "unit": "score", "direction": direction, "note": text}
                for axis, direction in (("helpful", "higher"), ("harmless", "lower"))
            },
            "points": [
                {"model": m, "helpful": value, "harmless": value, "over_refusal": over}
                for m, value, over in (
                    ("base", {**interval(0.2), "failed": 0}, {**interval(0.1), "failed": 0}),
                    ("sft", {**interval(0.4), "failed": 0}, None),
                )
            ],
        },
        "calibration": [
            {"stage": text, "n": 80, "bins": [{"n": 80, "confidence": 0.6, "right": 0.5, "low": 0.4, "high": 0.6}]}
        ],
        "looks": [
            {
                "stage": text,
                "best": 10.0,
                "stopped": None,
                "why": text,
                "prompts": 4,
                "answers": 8,
                "kinds": {"red_team": 2, "helpful": 2},
                "frontier": {
                    "score": "heldout_reward",
                    "points": [
                        {"step": step, "helpful": interval(0.5 - step / 50), "harmless": interval(step / 20)}
                        for step in (0.0, 10.0, 20.0)
                    ],
                },
                "rows": [
                    {"step": step, "reward": step / 10, "heldout_reward": 1 - step / 20, "kl": step / 5}
                    for step in (0.0, 10.0, 20.0)
                ],
            }
        ],
        "principles": [
            {
                "id": text,
                "drawn": 2,
                "revised": 1,
                "unchanged": 0,
                "change": 0.3,
                "labelled": 1,
                "mean_gap": 0.1,
                "flip_rate": None,
                "agreement": None,
                "human_accuracy": 0.5,
            }
        ],
        "revisions": [{"round": 1, "n": 1, "failed": 0, "unchanged": 0, "change": 0.3, "words": 12.0}],
        "quality": [
            {
                "stage": text,
                "kept": 3,
                "dropped": {text: 1},
                "contamination": {
                    "policy": text,
                    "count": 1,
                    "pairs": [{"train": text, "heldout": text, "similarity": 0.9}],
                },
                "equal_answers": 1,
                "cut_prompts": 1,
            }
        ],
        "truncation": [
            {
                "stage": text,
                "model": model,
                "texts": sort,
                "n": n,
                "cut": cut,
                "unknown": 2,
                "share": cut / n if n else None,
                "tokens": 48 if cut else None,
            }
            for model, sort, n, cut in (("base", "answers", 8, 5), (None, "revisions", 4, 0), (None, "critiques", 0, 0))
        ],
        "scores": [
            {
                "evaluator": text,
                "model": model,
                "id": text,
                "values": values,
                "failure": None if values else failure,
                "item": {"prompt": text, "better": text} if model == "base" else None,
            }
            for model, values in (("base", {"grade": text, "score": 0.5}), ("sft", {}))
        ],
        "constitution": {
            "id": text,
            "version": text,
            "title": text,
            "digest": text,
            "principles": [{"id": text, "critique": text, "revision": text, "comparison": text}],
        },
        "models": [
            {"name": name, "label": text, "parent": parent, "source": text, "digest": text}
            for name, parent in (("base", None), ("sft", "base"))
        ],
        "metrics": [
            metric("hhh", "rate", "higher", (0.4, 0.6)),
            metric("words", "count", "none", (31.2, 28.0)),
            metric("score", "score", "lower", (0.1, None)),
            {
                **metric("calibration", "score", "lower", (None, None)),
                "values": {"judge": {**interval(0.2), "failed": 0}},
            },
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
                "clusters": None,
                "raised": 3,
                "lowered": 1,
                "effect": 0.4,
                "effect_name": text,
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
            "flips_to_first": None,
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
                "cut_at": cut_at,
                "rounds": some,
                "failure": failure,
            }
            for name, answer, cut_at, some in ((text, text, 48, rounds), ("p2", None, None, []))
        ],
        "pairs": [
            {
                "id": text,
                "prompt": turn(),
                "a": text,
                "b": text,
                "cut_at": {"a": 0, "b": 48},
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
                    "cut_at": None,
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
                "cut_at": {"a": None, "b": None},
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
        "measured_curves": [
            {
                "evaluator": text,
                "id": "revisions.score",
                "title": text,
                "x_label": text,
                "y_label": text,
                "series": [
                    {"name": text, "x": [0, 1], "y": [0.1, 0.4], "low": [0.0, 0.3], "high": [0.2, 0.5], "n": [4, 4]},
                    {"name": text, "x": [0, 1], "y": [0.2, 0.3], "low": [], "high": [], "n": []},
                ],
                "note": text,
                "diagonal": True,
            }
        ],
        "samples": [
            {
                "prompt_id": text,
                "kind": kind,
                "prompt": turn(),
                "answers": {"base": text, "sft": None},
                "cut_at": {"base": 48, "sft": None},
            }
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
                "retried": 1,
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
                "retried": 0,
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
