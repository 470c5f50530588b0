"""The arithmetic of policy-gradient RL on sequences: advantages, losses, estimates of the KL divergence, its control.

Tensors are [rows, columns] with a boolean ``mask`` of the same shape, True at the tokens that the policy drew. A row's
tokens stand side by side; what stands at other places, NaN included, has no part in any result.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens under ``mask``; 0 where there are none."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp_min(1)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Variance over the tokens under ``mask``, divided by their number; 0 where there are none."""
    return masked_mean((values - masked_mean(values, mask)) ** 2, mask)


def whiten(values: Tensor, mask: Tensor, *, shift: bool = True) -> Tensor:
    """``values`` with variance 1 over the tokens under ``mask``, and mean 0 unless ``shift`` is off; 0 elsewhere.

    Values that are all the same have no scale to bring to 1: they become 0, or stay as they are without ``shift``.
    """
    mean, variance = masked_mean(values, mask), masked_variance(values, mask)
    # Relative, since equal values have a variance of rounding errors, which is no scale.
    flat = variance <= 1e-12 * masked_mean(values**2, mask)
    scale = torch.where(flat, 1, variance).rsqrt()
    scaled = torch.where(flat, 0, (values - mean) * scale) if shift else values * scale
    return torch.where(mask, scaled, 0)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """r_t = -``beta`` ``kl``_t, and the row's score [rows] on top at its last token (Ziegler et al. 2019, 2.2; Bai et
    al. 2022a, 4.1: r_PM - beta KL). Their sum over a row is its score less beta times its KL."""
    ends = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return torch.where(mask, -beta * kl, 0) + torch.where(ends, scores[:, None], 0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns (Schulman et al. 2016, eq. 16; 2017, eq. 11 and 12): with d_t = r_t + gamma V_t+1 - V_t,
    A_t = d_t + gamma lam A_t+1, and the return that the value function learns is A_t + V_t.

    After the last token nothing more is earned: V and A are 0 there, also where an answer ended at its longest.
    """
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        later = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(following)
        # ``values`` and ``following`` are 0 behind a row's last token.
        following = torch.where(mask[:, t], rewards[:, t] + gamma * later - values[:, t] + gamma * lam * following, 0)
        advantages[:, t] = following
    return advantages, advantages + values


def policy_loss(log_ratio: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Minus the clipped surrogate of each token (Schulman et al. 2017, eq. 7), 0 outside of ``mask``.

    log_ratio: log pi(a|s) - log pi_old(a|s). The lower of ratio A and clip(ratio, 1 - clip, 1 + clip) A counts.
    """
    ratio = torch.where(mask, log_ratio, 0).exp()
    return torch.where(mask, -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages), 0)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float | None) -> Tensor:
    """Half the squared error of each token, 0 outside of ``mask``. With ``clip``, the error of a value that moved
    further than that from ``old`` is at least that of the value moved no further (the code of Ziegler et al. 2019)."""
    error = (torch.where(mask, values - returns, 0)) ** 2
    if clip is not None:
        near = old + torch.where(mask, values - old, 0).clamp(-clip, clip)
        error = torch.maximum(error, torch.where(mask, near - returns, 0) ** 2)
    return 0.5 * error


def kl_k1(log_ratio: Tensor) -> Tensor:
    """log pi - log ref of each drawn token: what the KL divergence pi || ref is the mean of. Can be negative."""
    return log_ratio


def kl_k3(log_ratio: Tensor) -> Tensor:
    """ref/pi - 1 - log ref/pi (Schulman 2020, "Approximating KL Divergence"): the same mean, never negative."""
    return torch.expm1(-log_ratio) + log_ratio


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect value function, 0 one as good as a constant, and below 0
    worse than that. 0 where all returns are the same."""
    total = masked_variance(returns, mask)
    return float(1 - masked_variance(returns - values, mask) / total) if total > 0 else 0.0


def next_beta(beta: float, kl: float, target: float, gain: float) -> float:
    """The coefficient for the next step (Ziegler et al. 2019, 2.2): beta (1 + gain e) with the relative error
    e = (kl - target) / target, at most 0.2 either way. kl: nats per sequence."""
    error = (kl - target) / target
    return beta * (1 + gain * min(max(error, -0.2), 0.2))
