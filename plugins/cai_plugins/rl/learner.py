"""A policy under training by one of our own loops, in one process or several.

Plain data parallel; FSDP2; or DeepSpeed. Each process samples and reads a part of a batch, with the model itself or,
where its weights are shared out, with a whole copy of it (``gathered.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, fsdp2_prepare_model
from peft import get_peft_model

from cai_core.types.backend import GenerateRequest
from cai_core.types.context import StageContext
from cai_plugins._torch.callbacks import KEEP
from cai_plugins._torch.checkpoints import keep_last
from cai_plugins._torch.loading import load_causal
from cai_plugins._torch.lora import lora_config
from cai_plugins._torch.parts import Part, load_training, save_training
from cai_plugins._torch.ranks import check_sharded, connect, join, own, rank, shards, shares_weights, world
from cai_plugins.rl.live import Live, no_dropout
from cai_plugins.rl.plugin import OnlineDPOOptions, PPOOptions
from cai_plugins.rl.samples import Tokens

FORMAT = 2
"""Of checkpoints: raised where older ones cannot be read."""


class Learner(Live):
    """See ``Live``. ``parts["policy"]`` is what learns of it, and its ``model`` what a pass with gradients calls: under
    FSDP2 and DeepSpeed's stage 3 as often in each process. ``given``: the model, before any adapters.

    micro: items in memory at a time that ``Live`` reads. per_pass: those of a pass with gradients. batch: those of an
    optimizer step of all processes, of which there are ``updates``.
    """

    def __init__(
        self,
        options: PPOOptions | OnlineDPOOptions,
        context: StageContext,
        policy: Path,
        tokenizer: Any,
        *,
        micro: int,
        per_pass: int,
        batch: int,
        updates: int,
        rows: int | None = None,
        budget: int | None = None,
    ) -> None:
        connect(context.device)
        self.options, self.per_pass, self.batch, self.updates = options, per_pass, batch, updates
        cpu = context.device == "cpu"
        # Sharded, it would round weights, and gradients on their way; ``_precision`` is the same for all.
        precision = "no" if cpu or shards() else "bf16"
        once = GradientAccumulationPlugin(num_steps=1)  # our passes are counted here
        self.accelerator = Accelerator(cpu=cpu, mixed_precision=precision, gradient_accumulation_plugin=once)
        self.given = load_causal(policy, context.device, all_weights=options.lora is None)
        model = get_peft_model(self.given, lora_config(options.lora, "CAUSAL_LM")) if options.lora else self.given
        no_dropout(self.given)
        self.given.train(options.gradient_checkpointing)
        if options.gradient_checkpointing:
            self.given.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        super().__init__(model, policy, tokenizer, context, options.temperature, micro, rows, budget)
        self.parts = {"policy": self.part(model, options.learning_rate)}
        check_sharded(self.accelerator, self.parts["policy"].model)

    def part(self, model: Any, rate: float, *, whole: bool = False) -> Part:
        """The weights of ``model`` that learn, shared out as the launch's configuration says. whole: they are few, and
        every process keeps them all."""
        kind = self.accelerator.distributed_type.value
        if kind == "DEEPSPEED" and not whole:
            from cai_plugins._torch.zero import ZeroPart

            plugin, device = self.accelerator.state.deepspeed_plugin, self.context.device
            sizes = {"micro": self.per_pass, "batch": self.batch}
            return ZeroPart(model, self.options, rate, self.updates, plugin=plugin, device=device, **sizes)
        if kind == "FSDP" and not whole:
            plugin = self.accelerator.state.fsdp_plugin
            given = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
            model = fsdp2_prepare_model(self.accelerator, model)
            # It has put in which layers this model is cut into, and the next one may have others.
            plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = given
        else:
            model.to(self.context.device)
        return Part(model, self.options, rate, self.updates)

    def folder(self, name: str) -> Path:
        """That of the checkpoints of the training ``name``. FSDP2's are the same files as plain ones, DeepSpeed's not:
        they fit the same number of processes, and stage 3 or the others."""
        name = f"{name}-{FORMAT}"
        if shards() == "DEEPSPEED":
            name = f"{name}-deepspeed{3 if shares_weights() else 2}-{world()}"
        return self.context.workdir / name

    def sample(self, requests: Sequence[GenerateRequest], prompts: Sequence[list[int]]) -> list[list[int]]:
        """See ``Rollouts``. Each process draws a part of the answers, one prompt's together, and gets all of them."""
        mine = own(len(requests))
        return join(super().sample(requests[mine], prompts[mine]))

    def kl(self, samples: Sequence[Tokens]) -> list[float]:
        """See ``Live``. Each process reads a part and gets all."""
        return join(super().kl(samples[own(len(samples))]))

    def result(self, best: int | None) -> Any:
        """What ``save_merged`` is to write: the policy as it is; or, where ``best`` is 0, as it was given, which the
        first process loads."""
        if best != 0:
            self.refresh()
        elif not rank():
            return load_causal(self.policy, self.context.device, all_weights=self.options.lora is None)
        return self.trained

    def save(self, folder: Path, kept: dict[str, Any], spared: Sequence[int]) -> None:
        """A sealed checkpoint: what is trained, the optimizers, the schedules, and ``kept``. Of those before the last
        and ``spared`` stay."""
        save_training(folder, self.parts, kept)
        if not rank():
            keep_last(folder.parent, KEEP, spared)

    def load(self, folder: Path) -> dict[str, Any]:
        """Go on where ``save`` was; returns ``kept``."""
        return load_training(folder, self.parts)
