"""GRPO over TRL's ``GRPOTrainer``.

Kept of it: sampling, advantages, the clipped loss with KL to the reference, accumulation. The paper uses PPO with a
value model (and KL inside the reward); GRPO has none: the mean of a prompt's samples is the baseline. ``kl`` is TRL's
per-token estimate (k3) times the mean length. What is left out, and how it restarts: see ``grouped.py``.
"""

from __future__ import annotations

from trl import GRPOConfig, GRPOTrainer

from cai_core.types.context import StageContext
from cai_plugins._torch.callbacks import Unobserved
from cai_plugins.rl.grouped import Grouped, WithRates
from cai_plugins.rl.plugin import GRPOOptions


class _Trainer(WithRates, Unobserved, GRPOTrainer):
    pass


def grpo(options: GRPOOptions, context: StageContext) -> Grouped:
    """The algorithm with these options."""
    own = {"scale_rewards": options.scale_rewards, "loss_type": options.loss}
    return Grouped("grpo", _Trainer, GRPOConfig, own, options, context)
