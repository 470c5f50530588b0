"""Bradley-Terry ratings on the Elo scale, and win rates at equal length: leaf functions on arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = Any  # of float64; numpy's own generic types say no more here

ELO = 400 / math.log(10)
"""Elo points per unit of log-odds: a win rate of 1 / (1 + 10^(-d/400)) at a difference d (Bai et al. 2022a)."""
ITERATIONS = 100  # Newton converges in about ten; our choice
STEP = 3.0  # largest change of a log-strength in one step, so that a first step cannot overshoot; our choice


def connected(wins: Array, start: int) -> list[int]:
    """Who was compared with ``start``, maybe through others: only they can be rated against it. It is one of them."""
    wins = np.asarray(wins, dtype=float)
    reached, frontier = {start}, [start]
    while frontier:
        one = frontier.pop()
        new = {int(n) for n in np.flatnonzero(wins[one] + wins[:, one])} - reached
        reached |= new
        frontier += new
    return sorted(reached)


def ratings(wins: Array, *, prior: float = 1.0, compared: Array | None = None) -> Array:
    """Maximum-likelihood log-strengths, mean 0, shape (..., k), of ``wins``, shape (..., k, k): ``wins[i, j]`` is how
    often i won against j; a tie is half a win for both (Bradley and Terry 1952).

    prior: virtual ties between each two that were compared. One (our choice) keeps the rating of who won everything
    finite, and pulls differences towards 0 by less than the interval is wide; with 0 such a rating does not exist.
    compared: who was, shape (k, k); None takes it from ``wins``. A resample that drew no comparison of two needs it.
    Times ``ELO`` these are Elo points. Raises ``ValueError`` where some cannot be compared, not even through others.
    """
    wins = np.asarray(wins, dtype=float)
    count = wins.shape[-1]
    if compared is None:
        compared = (wins + np.swapaxes(wins, -1, -2)) > 0
    if len(connected(compared.reshape(-1, count, count).any(0), 0)) < count:
        raise ValueError("some were never compared with the others")
    wins = wins + prior / 2 * compared
    played = wins + np.swapaxes(wins, -1, -2)
    theta = np.zeros(wins.shape[:-1])
    for _ in range(ITERATIONS):
        p = 1 / (1 + np.exp(theta[..., None, :] - theta[..., :, None]))
        gradient = (wins - played * p).sum(-1)
        weights = played * p * (1 - p)
        # The Laplacian of the weights; adding a constant to all strengths changes nothing, so that direction is fixed.
        hessian = -weights + np.eye(count) * weights.sum(-1)[..., None] + np.ones((count, count)) / count
        step = np.clip(np.linalg.solve(hessian, gradient[..., None])[..., 0], -STEP, STEP)
        theta = theta + step
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    return theta - theta.mean(-1, keepdims=True)


def standard_errors(wins: Array, anchor: int, *, prior: float = 1.0) -> Array:
    """Standard errors of the log-strengths less that of ``anchor``, from the observed information; shape (k,)."""
    wins = np.asarray(wins, dtype=float)
    wins = wins + prior / 2 * ((wins + wins.T) > 0)
    theta = ratings(wins, prior=0.0)
    played = wins + wins.T
    p = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))
    weights = played * p * (1 - p)
    inverse = np.linalg.pinv(np.diag(weights.sum(-1)) - weights)
    return np.sqrt(np.maximum(np.diag(inverse) + inverse[anchor, anchor] - 2 * inverse[anchor], 0.0))


def controlled_rate(outcomes: Array, lengths: Array, weights: Array | None = None, *, prior: float = 1.0) -> Array:
    """The win rate at equal length, shape (...): logistic regression of the outcomes (1, 0 or 0.5; shape (n,)) on
    tanh(length difference / its standard deviation), read at 0, as Dubois et al. 2024 (arXiv 2404.04475, equation 3)
    without their term for the instruction's difficulty, which needs many models.

    lengths: length of the answer less that of the other one. weights: how often each counts, shape (..., n); None is
    once. prior: virtual ties, a third each at -1, 0 and 1 of the covariate, so that it exists where all won.
    """
    y = np.concatenate([np.asarray(outcomes, dtype=float), [0.5, 0.5, 0.5]])
    lengths = np.asarray(lengths, dtype=float)
    spread = lengths.std()
    x = np.concatenate([np.tanh(lengths / spread) if spread > 0 else np.zeros_like(lengths), [-1.0, 0.0, 1.0]])
    own = np.ones(len(lengths)) if weights is None else np.asarray(weights, dtype=float)
    w = np.concatenate([own, np.full((*own.shape[:-1], 3), prior / 3)], axis=-1)
    a = np.zeros(own.shape[:-1])
    b = np.zeros(own.shape[:-1])
    for _ in range(ITERATIONS):
        p = 1 / (1 + np.exp(-(a[..., None] + b[..., None] * x)))
        residual, curvature = w * (y - p), w * p * (1 - p)
        g0, g1 = residual.sum(-1), (residual * x).sum(-1)
        h00, h01, h11 = curvature.sum(-1), (curvature * x).sum(-1), (curvature * x * x).sum(-1)
        determinant = h00 * h11 - h01 * h01
        step_a = np.clip((h11 * g0 - h01 * g1) / determinant, -STEP, STEP)
        step_b = np.clip((h00 * g1 - h01 * g0) / determinant, -STEP, STEP)
        a, b = a + step_a, b + step_b
        if max(np.abs(step_a).max(initial=0.0), np.abs(step_b).max(initial=0.0)) < 1e-10:
            break
    return 1 / (1 + np.exp(-a))


def resamples(count: int, draws: int, seed: int) -> Array:
    """How often each of ``count`` prompts is drawn in each resample of the bootstrap, shape (draws, count)."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
