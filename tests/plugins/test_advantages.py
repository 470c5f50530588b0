"""Advantages, losses and KL: values worked out by hand, plain loops beside tensors, and what padding may not change."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cai_plugins.rl.advantages import (
    explained_variance,
    gae,
    kl_k1,
    kl_k3,
    masked_mean,
    masked_variance,
    next_beta,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)

NUMBER = st.floats(-5, 5).map(lambda x: round(x, 4))
RAGGED = st.lists(st.lists(NUMBER, min_size=1, max_size=6), min_size=1, max_size=5)


def padded(rows: list[list[float]], *, left: int = 0, right: int = 0) -> tuple[Tensor, Tensor]:
    """Rows at the right end but for ``right`` columns, with NaN wherever no token stands; and the mask."""
    width = max(map(len, rows)) + left
    nan = math.nan
    values = torch.tensor([[nan] * (width - len(r)) + r + [nan] * right for r in rows], dtype=torch.float64)
    return values, ~values.isnan()


def close(found: Tensor, wanted: list[float] | Tensor, tolerance: float = 1e-9) -> bool:
    return torch.allclose(found.double(), torch.as_tensor(wanted, dtype=torch.float64), atol=tolerance, rtol=0)


def test_gae_by_hand() -> None:
    """gamma 0.9, lambda 0.5: d = (1 + 0.9 x 2 - 1, 0 + 0.9 x 3 - 2, 4 - 3) = (1.8, 0.7, 1)."""
    rewards = torch.tensor([[1.0, 0.0, 4.0]], dtype=torch.float64)
    values = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.9, 0.5)
    second = 0.7 + 0.45 * 1.0
    assert close(advantages, [[1.8 + 0.45 * second, second, 1.0]])
    assert close(returns, advantages + values)


def test_gae_with_lambda_one_is_return_less_value_and_with_zero_one_step() -> None:
    rewards, mask = padded([[1.0, 2.0, 3.0], [5.0]])
    values, _ = padded([[0.5, 0.25, 1.0], [2.0]])
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    assert close(returns, [[6.0, 5.0, 3.0], [0.0, 0.0, 5.0]])
    assert close(advantages, [[5.5, 4.75, 2.0], [0.0, 0.0, 3.0]])
    one_step, _ = gae(rewards, values, mask, 1.0, 0.0)
    assert close(one_step, [[1 + 0.25 - 0.5, 2 + 1 - 0.25, 3 - 1.0], [0.0, 0.0, 3.0]])


@given(RAGGED, st.integers(0, 3), st.integers(0, 3), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_a_plain_loop_over_each_row(
    rows: list[list[float]], left: int, right: int, gamma: float, lam: float
) -> None:
    rewards, mask = padded(rows, left=left, right=right)
    values, _ = padded([[x * 0.3 + 1 for x in reversed(row)] for row in rows], left=left, right=right)
    advantages, _ = gae(rewards, values, mask, gamma, lam)
    for i in range(len(rows)):
        r, v = rewards[i][mask[i]].tolist(), values[i][mask[i]].tolist()
        for t in range(len(r)):
            wanted = 0.0
            for k in range(t, len(r)):
                later = v[k + 1] if k + 1 < len(r) else 0.0
                wanted += (gamma * lam) ** (k - t) * (r[k] + gamma * later - v[k])
            assert float(advantages[i][mask[i]][t]) == pytest.approx(wanted, abs=1e-9)
    assert (advantages[~mask] == 0).all()


@given(RAGGED, st.integers(0, 3), st.integers(0, 3))
def test_whitening_sees_tokens_alone(rows: list[list[float]], left: int, right: int) -> None:
    values, mask = padded(rows, left=left, right=right)
    flat = torch.tensor([x for row in rows for x in row], dtype=torch.float64)
    assert close(masked_mean(values, mask), flat.mean())
    assert close(masked_variance(values, mask), flat.var(correction=0))
    white, scaled = whiten(values, mask), whiten(values, mask, shift=False)
    assert (white[~mask] == 0).all()
    assert (scaled[~mask] == 0).all()
    if flat.var(correction=0) <= 1e-12 * (flat**2).mean():
        assert (white == 0).all()
        assert close(scaled[mask], flat)
        return
    assert close(white[mask].mean(), torch.tensor(0.0), 1e-6)
    for found in (white, scaled):
        assert close(found[mask].var(correction=0), torch.tensor(1.0), 1e-6)
    assert close(scaled[mask] * flat.std(correction=0), flat, 1e-6), "without a shift the sign stays"
    assert close(whiten(values * 7 + 3, mask), white, 1e-5), "scale and offset of rewards do not matter"


def test_equal_values_are_not_blown_up() -> None:
    values = torch.full((2, 5), 0.1, dtype=torch.float32)
    assert (whiten(values, torch.ones(2, 5, dtype=torch.bool)) == 0).all()
    assert (whiten(values, torch.zeros(2, 5, dtype=torch.bool)) == 0).all()


@given(RAGGED, st.integers(0, 3), st.integers(0, 3), st.floats(0, 2))
def test_rewards_of_a_row_add_up_to_its_score_less_beta_kl(
    rows: list[list[float]], left: int, right: int, beta: float
) -> None:
    kl, mask = padded(rows, left=left, right=right)
    scores = torch.arange(len(rows), dtype=torch.float64) + 0.5
    rewards = token_rewards(scores, kl, mask, beta)
    for i, row in enumerate(rows):
        assert float(rewards[i].sum()) == pytest.approx(i + 0.5 - beta * sum(row), abs=1e-9)
        own = rewards[i][mask[i]]
        assert close(own[:-1], [-beta * x for x in row[:-1]])
        assert float(own[-1]) == pytest.approx(i + 0.5 - beta * row[-1])
    assert (rewards[~mask] == 0).all()


@pytest.mark.parametrize(
    ("ratio", "advantage", "wanted"),
    [
        (1.0, 2.0, -2.0),
        (1.1, 2.0, -2.2),
        (1.5, 2.0, -2.4),  # clipped: there is no more to gain
        (0.5, 2.0, -1.0),  # not clipped: a mistake is to be undone
        (0.5, -2.0, 1.6),  # clipped
        (1.5, -2.0, 3.0),  # not clipped
    ],
)
def test_clipped_surrogate_by_hand(ratio: float, advantage: float, wanted: float) -> None:
    change = torch.tensor([[math.log(ratio), math.nan]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    loss = policy_loss(change, torch.tensor([[advantage, math.nan]]), mask, 0.2)
    assert loss.tolist()[0] == pytest.approx([wanted, 0.0], rel=1e-5)
    loss.sum().backward()
    clipped = (ratio > 1.2 and advantage > 0) or (ratio < 0.8 and advantage < 0)
    assert change.grad is not None
    # d(-ratio A)/d log ratio = -ratio A, and nothing where the clipped side counts.
    assert change.grad.tolist()[0] == pytest.approx([0.0 if clipped else -ratio * advantage, 0.0], rel=1e-5)


@pytest.mark.parametrize(
    ("value", "old", "wanted_return", "clip", "loss"),
    [
        (3.0, 2.0, 5.0, None, 2.0),
        (3.0, 2.0, 5.0, 0.2, 0.5 * 2.8**2),  # ran ahead: it is charged for where it may be
        (2.1, 2.0, 5.0, 0.2, 0.5 * 2.9**2),  # within the clip
        (4.0, 2.0, 2.0, 0.2, 2.0),  # ran away from the return: the error counts whole
    ],
)
def test_value_loss_by_hand(value: float, old: float, wanted_return: float, clip: float | None, loss: float) -> None:
    rows = [torch.tensor([[x, math.nan]], dtype=torch.float64) for x in (value, old, wanted_return)]
    rows[0].requires_grad_(True)
    found = value_loss(*rows, torch.tensor([[True, False]]), clip)
    assert found.tolist()[0] == pytest.approx([loss, 0.0])
    found.sum().backward()
    assert rows[0].grad is not None
    assert rows[0].grad[0, 1] == 0


def test_kl_estimates_have_the_divergence_as_their_mean() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    log_ratio = (p / q).log()
    kl = float((p * log_ratio).sum())
    assert kl == pytest.approx(0.5 * math.log(2.5) + 0.3 * math.log(1.5) + 0.2 * math.log(1 / 3))
    assert float((p * kl_k1(log_ratio)).sum()) == pytest.approx(kl)
    assert float((p * kl_k3(log_ratio)).sum()) == pytest.approx(kl)
    assert kl_k1(log_ratio).min() < 0
    assert kl_k3(log_ratio).min() > 0
    assert float(kl_k3(torch.tensor(0.0))) == 0


def test_explained_variance_by_hand() -> None:
    returns, mask = padded([[1.0, 2.0, 3.0], [6.0]])
    assert explained_variance(returns, returns, mask) == pytest.approx(1)
    assert explained_variance(torch.full_like(returns, 9.0), returns, mask) == pytest.approx(0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(
        -3
    )  # errors twice as large, variance four times
    half = returns / 2
    assert explained_variance(half, returns, mask) == pytest.approx(0.75)
    assert explained_variance(returns, torch.ones_like(returns), mask) == 0


def test_adaptive_beta_by_hand() -> None:
    assert next_beta(0.1, 6.0, 6.0, 0.1) == pytest.approx(0.1)
    assert next_beta(0.1, 6.6, 6.0, 0.1) == pytest.approx(0.1 * 1.01)
    assert next_beta(0.1, 60.0, 6.0, 0.1) == pytest.approx(0.1 * 1.02)
    assert next_beta(0.1, 0.0, 6.0, 0.1) == pytest.approx(0.1 * 0.98)
    assert next_beta(0.1, -3.0, 6.0, 0.1) == pytest.approx(0.1 * 0.98)


@given(st.floats(1e-6, 10), st.floats(-100, 1e6))
def test_adaptive_beta_stays_positive_and_goes_against_the_error(beta: float, kl: float) -> None:
    found = next_beta(beta, kl, 6.0, 1.0)
    assert 0.79 * beta < found < 1.21 * beta
    assert (found - beta) * (kl - 6.0) >= 0
