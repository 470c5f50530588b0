"""The loss of preference models."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def soft_bradley_terry(margin: Tensor, p: Tensor) -> Tensor:
    """Cross-entropy of sigmoid(margin) against the probability ``p`` that A is better, one value per row.

    ``margin``: score of A minus score of B. Its gradient in ``margin`` is sigmoid(margin) - p, so it is least where
    the model is as sure as the label, and at p = 1 it is the usual -log sigmoid(margin). Soft labels are the paper's
    target (section 4.1), and gave "much better results" than hard ones without chain of thought (section 4.3).
    """
    return -(p * logsigmoid(margin) + (1 - p) * logsigmoid(-margin))


def preference_loss(score_a: Tensor, score_b: Tensor, p: Tensor, weight: Tensor, centering: float = 0.0) -> Tensor:
    """``weight`` times the sum of ``soft_bradley_terry`` and ``centering * (score_a + score_b) ** 2``, one value per
    row. The second term draws the scores of a pair towards a mean of zero, which the first leaves free (Eisenstein et
    al. 2023); it is the term of TRL's ``center_rewards_coefficient``.
    """
    loss = soft_bradley_terry(score_a - score_b, p)
    if centering:
        loss = loss + centering * (score_a + score_b) ** 2
    return weight * loss
