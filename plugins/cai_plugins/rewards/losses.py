"""The loss of preference models."""

from __future__ import annotations

from torch import Tensor

from cai_plugins._torch.losses import soft_bradley_terry


def preference_loss(score_a: Tensor, score_b: Tensor, p: Tensor, weight: Tensor, centering: float = 0.0) -> Tensor:
    """``weight`` times the sum of ``soft_bradley_terry`` and ``centering * (score_a + score_b) ** 2``, one value per
    row. The second term draws the scores of a pair towards a mean of zero, which the first leaves free (Eisenstein et
    al. 2023); it is the term of TRL's ``center_rewards_coefficient``.
    """
    loss = soft_bradley_terry(score_a - score_b, p)
    if centering:
        loss = loss + centering * (score_a + score_b) ** 2
    return weight * loss
