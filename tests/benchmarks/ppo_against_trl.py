"""Our PPO beside that of TRL 1.12, the last release that has one.

    python tests/benchmarks/ppo_against_trl.py [--seeds 5] [--steps 40] [--prompts 16] [--tokens 32] [--hidden 64]

Both train the same tiny random policy on the same prompts against the same scripted reward (the share of the letter e)
for the same number of samples, with the same settings: all weights, a separate critic that begins as the policy,
learning rate, KL coefficient (k1, fixed), clips, gamma, lambda, passes, minibatches, temperature 1, float32 on a CPU
with one thread. TRL runs in an environment of its own under a temporary folder that shares everything but `trl` with
ours, so that torch and transformers are the same. TRL wants a reward *model*: the scripted reward is put in the place
of the function that asks it.

Printed per seed: the mean reward of 256 samples of either trained policy, drawn by the same backend with the same
seeds, and samples per second over the whole training (loading, sampling, scoring, updating, saving). Runs alternate,
each in a process of its own. Then means, and the paired difference of rewards with Student's 95 % interval.

Where nearly all answers are empty, ours stops, and the result is its last checkpoint before that (every 5 steps); TRL's
goes on. Not covered: GPUs, adapters, models whose size makes sampling dear (the tiny policy measures overhead more than
arithmetic; take --hidden 512 for less of that), learning rates tuned for each.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "beta": 0.01, "clip": 0.2, "value_clip": 0.2, "value_coef": 0.1, "gamma": 1.0, "lam": 0.95, "epochs": 2,
    "minibatches": 2, "learning_rate": 3e-3,
}  # fmt: skip


def questions(count: int) -> list[str]:
    """Of different lengths."""
    return [f"How do I bake {'very ' * (i % 4)}good bread number {i}?" for i in range(count)]


def share_of_e(texts: list[str]) -> list[float]:
    return [text.count("e") / max(1, len(text)) for text in texts]


def ours(policy: Path, out: Path, seed: int, steps: int, prompts: int, tokens: int) -> None:
    from types import SimpleNamespace

    from cai_core.testing.context import TestContext
    from cai_core.types.prompts import Prompt
    from cai_core.types.records import Message
    from cai_plugins.rl.plugin import PPOOptions, make_ppo

    options = PPOOptions(
        **SETTINGS, steps=steps, prompts_per_step=prompts, samples_per_prompt=1, max_new_tokens=tokens, lora=None,
        critic="separate", max_kl=None, save_steps=5,
    )  # fmt: skip
    asked = [Prompt(f"p{i}", (Message("user", text),)) for i, text in enumerate(questions(prompts))]
    reward: Any = SimpleNamespace(score=lambda exchanges: share_of_e([e.response for e in exchanges]))
    context: Any = TestContext(out.with_name(f"{out.name}-work"), seed=seed)
    result = make_ppo(options, context).train(policy, asked, reward, out)
    if "stopped" in result.metrics:
        print("steps", int(result.metrics["stopped"]))


def theirs(policy: Path, out: Path, seed: int, steps: int, prompts: int, tokens: int) -> None:
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # noqa: TID251 - the peer itself, never installed here

    assert trl.__version__.startswith("1.12."), trl.__version__
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    judge, honest = torch.nn.Identity(), ppo_trainer.get_reward

    def scripted(model: Any, ids: Any, pad: int, start: int) -> Any:
        if model is not judge:
            return honest(model, ids, pad, start)
        return None, torch.tensor(share_of_e(tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True))), None

    ppo_trainer.get_reward = scripted
    rows = []
    for text in questions(prompts):
        turns = [{"role": "user", "content": text}]
        whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        rows.append({"input_ids": tokenizer(whole, add_special_tokens=False)["input_ids"]})
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(out.with_name(f"{out.name}-work")), seed=seed, use_cpu=True, report_to="none",
            disable_tqdm=True, save_strategy="no", logging_strategy="no", num_sample_generations=0,
            per_device_train_batch_size=prompts, gradient_accumulation_steps=1, total_episodes=steps * prompts,
            local_rollout_forward_batch_size=prompts, response_length=tokens, stop_token="eos", temperature=1.0,
            num_ppo_epochs=SETTINGS["epochs"], num_mini_batches=SETTINGS["minibatches"], kl_coef=SETTINGS["beta"],
            cliprange=SETTINGS["clip"], cliprange_value=SETTINGS["value_clip"], vf_coef=SETTINGS["value_coef"],
            gamma=SETTINGS["gamma"], lam=SETTINGS["lam"], learning_rate=SETTINGS["learning_rate"],
            lr_scheduler_type="constant", bf16=False, gradient_checkpointing=False,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(policy),
        ref_model=None,
        reward_model=judge,
        value_model=AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1),
        train_dataset=Dataset.from_list(rows),
    )  # fmt: skip
    trainer.train()
    trainer.accelerator.unwrap_model(trainer.model).policy.save_pretrained(out)
    tokenizer.save_pretrained(out)


def reward_of(policy: Path, prompts: int, tokens: int) -> float:
    """The mean reward of 256 samples, the same seeds for every policy."""
    from cai_core.testing.base import local_model
    from cai_core.types.backend import GenerateRequest, Sampling
    from cai_core.types.records import Message, ModelInput

    asked = questions(prompts)
    requests = [
        GenerateRequest(
            str(k), ModelInput(messages=(Message("user", asked[k % prompts]),)), Sampling(tokens), 10_000 + k
        )
        for k in range(256)
    ]
    backend = local_model(policy)
    done = list(backend.generate(requests))
    backend.close()
    return sum(share_of_e([one.text for one in done])) / len(done)


def environment(folder: Path) -> Path:
    """A Python whose ``trl`` is 1.12 and whose other packages are those of this one."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", "trl==1.12.*"], check=True)
    (own,) = (folder / "lib").glob("python*/site-packages")
    # What a .pth file adds comes after the environment's own packages, so that its trl is found first.
    (own / "shared.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    return python


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--arm", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--policy", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm:
        import torch

        torch.set_num_threads(1)
        # What takes a moment to import, so that the clock sees the training alone.
        importlib.import_module("cai_plugins.rl.ppo" if given.arm == "ours" else "trl.experimental.ppo")
        start = time.perf_counter()
        run = ours if given.arm == "ours" else theirs
        run(given.policy, given.out, given.seed, given.steps, given.prompts, given.tokens)
        print("seconds", time.perf_counter() - start)
        return

    from scipy.stats import ttest_rel

    from cai_core.testing.tiny import tiny_model

    work = Path(tempfile.mkdtemp(prefix="ppo-against-trl-"))
    try:
        pythons = {"ours": Path(sys.executable), "theirs": environment(work / "venv")}
        found: dict[str, list[tuple[float, float]]] = {arm: [] for arm in pythons}
        for seed in range(given.seeds):
            policy = tiny_model(work / f"policy-{seed}", hidden=given.hidden, seed=seed)
            before = reward_of(policy, given.prompts, given.tokens)
            for arm, python in list(pythons.items())[:: 1 if seed % 2 else -1]:
                out = work / f"{arm}-{seed}"
                command = [str(python), __file__, "--arm", arm, "--policy", str(policy), "--out", str(out)]
                for name in ("steps", "prompts", "tokens"):
                    command += [f"--{name}", str(getattr(given, name))]
                path = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
                done = subprocess.run(
                    [*command, "--seed", str(seed)],
                    env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                said = dict(
                    line.split() for line in done.stdout.splitlines() if line.startswith(("seconds ", "steps "))
                )
                steps = int(said.get("steps", given.steps))
                speed = steps * given.prompts / float(said["seconds"])
                found[arm].append((reward_of(out, given.prompts, given.tokens), speed))
                end = f", stopped at step {steps}" if steps < given.steps else ""
                print(
                    f"seed {seed} {arm:7} reward {before:.3f} -> {found[arm][-1][0]:.3f}, {speed:.1f} samples/s{end}",
                    flush=True,
                )
        rewards, speeds = ({arm: [row[i] for row in rows] for arm, rows in found.items()} for i in (0, 1))
        for arm in pythons:
            mean = [sum(values[arm]) / given.seeds for values in (rewards, speeds)]
            print(f"{arm:7} reward {mean[0]:.4f}, {mean[1]:.1f} samples/s")
        ratios = sorted(a / b for a, b in zip(speeds["ours"], speeds["theirs"], strict=True))
        print("samples/s, ours over theirs, by seed:", json.dumps([round(ratio, 2) for ratio in ratios]))
        if given.seeds > 1:
            low, high = ttest_rel(rewards["ours"], rewards["theirs"]).confidence_interval()
            difference = (sum(rewards["ours"]) - sum(rewards["theirs"])) / given.seeds
            print(f"reward, ours less theirs: {difference:+.4f} [{low:+.4f}, {high:+.4f}]")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
