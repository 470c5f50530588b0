"""How often the intervals of paired differences cover the truth, and how often the tests find what is not there.

A 95 % interval whose simulated coverage is below 93 % is a wrong interval. Each cell is ``RUNS`` data sets, so that its
standard error is at most 0.8 points (0.5 near 95 %); a bound is four of them away from what it guards.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from cai_core.pipeline import compare as compared
from cai_core.pipeline.compare import agresti_min, bootstrap_mean, compare, mcnemar_exact, sign_flip

RUNS = 800
pytestmark = pytest.mark.slow

DRAWS: dict[str, tuple[Callable[[random.Random], float], float]] = {
    "normal": (lambda rng: rng.gauss(0.3, 1.0), 0.3),
    "five steps": (lambda rng: float(rng.choices([-2, -1, 0, 1, 2], [1, 2, 4, 3, 2])[0]), 3 / 12),
    "exponential": (lambda rng: rng.expovariate(1.0) - 0.5, 0.5),
    "mostly zero": (lambda rng: rng.choice((0.0, 0.0, 0.0, 1.0, -0.5)), 0.1),
}


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the resamples: coverage is the same within the standard error of the simulation."""
    monkeypatch.setattr(compared, "RESAMPLES", 1200)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("n", "least"), [(10, 0.88), (20, 0.91), (50, 0.93), (150, 0.93)])
def test_bootstrap_covers(name: str, n: int, least: float) -> None:
    """``least`` is what is promised: with ten items of a skewed score the interval is somewhat short."""
    draw, truth = DRAWS[name]
    rng = random.Random(f"{name} {n}")
    hits = 0
    for run in range(RUNS):
        low, high = bootstrap_mean([draw(rng) for _ in range(n)], run)
        hits += low <= truth <= high
    share = hits / RUNS
    print(f"{name}, n = {n}: covers {100 * share:.1f} %")
    assert least <= share <= 0.99 + 1e-9


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("clusters", "least"), [(10, 0.88), (20, 0.91), (40, 0.93)])
def test_clustered_bootstrap_covers_where_items_share_much(clusters: int, least: float) -> None:
    """Items of a cluster share half of their variance; clusters have 1 to 9 items. An interval that takes the items for
    independent covers far less."""
    rng = random.Random(clusters)
    hits = naive = 0
    for run in range(RUNS):
        groups = []
        for _ in range(clusters):
            shared = rng.gauss(0.2, 0.7)
            groups.append([shared + rng.gauss(0, 0.7) for _ in range(rng.randint(1, 9))])
        low, high = bootstrap_mean([sum(g) for g in groups], run, [len(g) for g in groups])
        hits += low <= 0.2 <= high
        low, high = bootstrap_mean([d for g in groups for d in g], run)
        naive += low <= 0.2 <= high
    print(f"{clusters} clusters: covers {100 * hits / RUNS:.1f} %, taken for independent {100 * naive / RUNS:.1f} %")
    assert hits / RUNS >= least
    assert naive / RUNS < 0.85


@pytest.mark.parametrize("p", [0.0, 0.02, 0.2, 0.5])
@pytest.mark.parametrize("n", [5, 16, 60, 500])
def test_interval_of_paired_rates_covers(n: int, p: float) -> None:
    """``p``: how often an item changes, in one direction twice as often as in the other."""
    rng = random.Random(f"{n} {p}")
    up, runs, hits = p * 2 / 3, 2000, 0
    for _ in range(runs):
        draws = [rng.random() for _ in range(n)]
        low, high = agresti_min(sum(up <= d < p for d in draws), sum(d < up for d in draws), n)
        hits += low <= 2 * up - p <= high
    print(f"n = {n}, p = {p}: covers {100 * hits / runs:.1f} %")
    assert hits / runs >= 0.93


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("n", [8, 12, 30, 100])
def test_tests_keep_their_level(n: int) -> None:
    """No test finds a difference that is not there in more than 5 % of the runs."""
    rng = random.Random(n)
    flips = exact = 0
    for run in range(RUNS):
        flips += sign_flip([rng.choice((-1, 1)) * rng.expovariate(1.0) for _ in range(n)], run) < 0.05
        changed = sum(rng.random() < 0.5 for _ in range(n))
        up = sum(rng.random() < 0.5 for _ in range(changed))
        exact += mcnemar_exact(changed - up, up) < 0.05
    most = 0.05 + 4 * math.sqrt(0.05 * 0.95 / RUNS)
    print(f"n = {n}: sign flips reject {100 * flips / RUNS:.1f} %, McNemar {100 * exact / RUNS:.1f} %")
    assert flips / RUNS <= most
    assert exact / RUNS <= most


@pytest.mark.timeout(1800)
def test_the_detectable_difference_is_detected_in_four_of_five_runs() -> None:
    """The promise of ``minimum_detectable``, for scores."""
    rng = random.Random(5)
    n, found = 60, 0
    least = 2.801585 / math.sqrt(n)  # of a standard deviation of 1
    for run in range(RUNS):
        first = {str(i): 0.0 for i in range(n)}
        second = {str(i): rng.gauss(least, 1) for i in range(n)}
        row = compare("m", "M", "a", "b", first, second, run)
        assert row is not None
        found += row["p"] < 0.05
    print(f"found in {100 * found / RUNS:.1f} % of runs")
    assert 0.74 <= found / RUNS <= 0.86


def test_many_items_take_the_normal_approximation_and_agree_with_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(9)
    first = {str(i): rng.gauss(0, 1) for i in range(1500)}
    second = {i: value + rng.gauss(0.05, 1) for i, value in first.items()}
    resampled = compare("m", "M", "a", "b", first, second, 0)
    monkeypatch.setattr(compared, "LARGE", 1000)
    approximated = compare("m", "M", "a", "b", first, second, 0)
    assert resampled is not None
    assert approximated is not None
    assert approximated["test"] == "normal approximation"
    for key, within in (("low", 0.01), ("high", 0.01), ("p", 0.03)):
        assert approximated[key] == pytest.approx(resampled[key], abs=within)
