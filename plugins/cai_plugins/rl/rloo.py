"""REINFORCE leave-one-out (Ahmadian et al. 2024) over TRL's ``RLOOTrainer``.

Kept of it: a whole answer is one action; its reward less beta times its log-ratio to the reference is what is earned,
and the mean of the prompt's other samples is the baseline. So what is maximised is the paper's E[r] - beta KL, without
a value model, and without GRPO's division by a group's standard deviation or its KL inside the loss. ``kl`` is the mean
log-ratio (k1), which may be negative in a batch. TRL clips ratios of whole answers where a batch is used more than
once. What is left out, and how it restarts: see ``grouped.py``.
"""

from __future__ import annotations

from trl import RLOOConfig, RLOOTrainer

from cai_core.types.context import StageContext
from cai_plugins._torch.callbacks import Unobserved
from cai_plugins.rl.grouped import Grouped, WithRates
from cai_plugins.rl.plugin import RLOOOptions


class _Trainer(WithRates, Unobserved, RLOOTrainer):
    pass


def rloo(options: RLOOOptions, context: StageContext) -> Grouped:
    """The algorithm with these options."""
    own = {"normalize_advantages": options.normalize_advantages}
    return Grouped("rloo", _Trainer, RLOOConfig, own, options, context)
