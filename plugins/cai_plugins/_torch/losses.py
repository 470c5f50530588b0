"""The loss of soft labels, which preference models and direct preference optimization share."""

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
