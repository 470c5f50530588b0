"""The statistics of paired comparisons, against scipy and by simulation."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cai_core.pipeline.compare import (
    RESAMPLES,
    agresti_min,
    bootstrap_mean,
    compare,
    compare_all,
    holm,
    mcnemar_exact,
    sign_flip,
)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_binomial_test(a: int, b: int) -> None:
    expected = stats.binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    assert mcnemar_exact(a, b) == pytest.approx(expected, abs=1e-12)


def test_sign_flip_equals_scipys_exact_permutation_test() -> None:
    differences = [0.3, -0.1, 0.8, 0.5, -0.2, 0.9, 0.4]
    expected = stats.permutation_test(
        (differences,), lambda x: abs(sum(x)), permutation_type="samples", alternative="greater", n_resamples=10**6
    ).pvalue
    assert sign_flip(differences, 0) == pytest.approx(expected, abs=1e-9)


def test_sign_flip_by_sampling_agrees_with_the_exact_one() -> None:
    rng = random.Random(1)
    differences = [rng.gauss(0.4, 1) for _ in range(12)]
    exact = sign_flip(differences, 0)
    # a 13th difference of zero switches to sampling and changes no total
    assert sign_flip([*differences, 0.0], 0) == pytest.approx(exact, abs=4 * (exact / RESAMPLES) ** 0.5 + 1e-3)


def test_null_rejects_at_about_its_level() -> None:
    rng = random.Random(2)
    rejections = sum(sign_flip([rng.gauss(0, 1) for _ in range(10)], 0) < 0.05 for _ in range(400))
    assert rejections / 400 < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_bootstrap_interval_agrees_with_scipys() -> None:
    rng = random.Random(3)
    differences = [rng.gauss(1, 2) for _ in range(40)]
    theirs = stats.bootstrap(
        (differences,), lambda x, axis: x.mean(axis=axis), method="percentile", n_resamples=20_000, rng=0
    ).confidence_interval
    low, high = bootstrap_mean(differences, 0)
    assert low == pytest.approx(theirs.low, abs=0.08)
    assert high == pytest.approx(theirs.high, abs=0.08)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_and_never_smaller_than_p(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(a >= p and a <= 1 for a, p in zip(adjusted, values, strict=True))
    assert adjusted[values.index(min(values))] == pytest.approx(min(1.0, len(values) * min(values)))
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_compare_pairs_by_item_and_ignores_items_that_one_lacks() -> None:
    row = compare("m", "M", "base", "rl", {"a": 0.0, "b": 0.0, "x": 1.0}, {"a": 1.0, "b": 1.0, "y": 0.0}, 0)
    assert row is not None
    assert (row["n"], row["difference"], row["test"]) == (2, 1.0, "exact McNemar")
    assert row["p"] == 0.5, "two items of two can never be significant"
    assert compare("m", "M", "a", "b", {"x": 1.0}, {"y": 1.0}, 0) is None


def test_same_models_are_never_conclusive_and_power_is_not_claimed() -> None:
    items = {str(i): float(i % 2) for i in range(30)}
    metrics = [{"id": "m", "label": "M", "model": name, "per_item": items} for name in ("base", "sft")]
    (row,) = compare_all(metrics, ["base", "sft"], 0)
    assert row["p"] == 1.0
    assert not row["conclusive"]
    assert row["minimum_detectable"] > 0


@pytest.mark.parametrize(("n", "p_a", "p_b"), [(16, 0.05, 0.2), (30, 0.1, 0.1), (60, 0.02, 0.1)])
def test_interval_of_paired_proportions_covers_at_small_n(n: int, p_a: float, p_b: float) -> None:
    rng = random.Random(n)
    runs, hits = 1500, 0
    for _ in range(runs):
        draws = [rng.random() for _ in range(n)]
        only_a, only_b = sum(d < p_a for d in draws), sum(p_a <= d < p_a + p_b for d in draws)
        low, high = agresti_min(only_a, only_b, n)
        hits += low <= p_b - p_a <= high
    assert hits / runs > 0.95 - 3 * (0.95 * 0.05 / runs) ** 0.5


def test_interval_of_paired_proportions_is_never_a_point() -> None:
    low, high = agresti_min(0, 0, 16)
    assert low < 0 < high
    low, high = agresti_min(16, 0, 16)
    assert -1 <= low < high < 0


@pytest.mark.parametrize("step", [0.0, 0.1])
@pytest.mark.parametrize("n", [1, 10])
def test_items_that_all_differ_by_the_same_are_no_certainty(n: int, step: float) -> None:
    before = {f"i{k}": 0.1 + 0.07 * k for k in range(n)}
    after = {item: value + step for item, value in before.items()}  # up to rounding
    row = compare("m", "M", "base", "rl", before, after, 0)
    assert row is not None
    assert row["difference"] == pytest.approx(step)
    assert (row["low"], row["high"], row["minimum_detectable"], row["effect"]) == (None, None, None, None)
    rate = compare("m", "M", "base", "rl", before, after, 0, bounded=True)
    assert rate is not None
    assert rate["low"] < step - 0.1 < step + 0.1 < rate["high"], "as wide as that of as many items that are 0 or 1"
    assert rate["minimum_detectable"] is None or rate["minimum_detectable"] > 0.1


def test_sums_that_differ_by_rounding_alone_are_ties() -> None:
    differences = [2, -9, 5, 2, -8, 6]
    assert sign_flip([123456.7 * d for d in differences], 0) == sign_flip(differences, 0)
