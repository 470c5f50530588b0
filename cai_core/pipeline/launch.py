"""Training stages in several processes: what a recipe asks for, checked before anything runs.

``launch: {processes: 2, config: fsdp.yaml}`` says how the work is done and not what comes out, so no digest covers it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cai_core.errors import UserError
from cai_core.pipeline.components import ComponentUse
from cai_core.recipe import MAX_BYTES, RecipeFile
from cai_core.yamlio import load_yaml, near_name

TRAINS = {"sft": "trainer", "reward": "reward_model", "rl": "rl_algorithm"}
"""The stages that can be launched, and the kind of component that does the training in each."""
SHARDED = ("FSDP", "DEEPSPEED")
PLAIN = ("MULTI_GPU", "MULTI_CPU", "NO")


def launch_of(
    kind: str, file: RecipeFile, uses: Sequence[ComponentUse], problems: list[UserError], *, named: bool = True
) -> dict[str, Any] | None:
    """How the stage is launched, as JSON: ``processes`` and the content of the file ``config``. None: one process.

    What the recipe says of all stages holds for those whose components can train in several processes
    (``Component.distributed``); said of one stage, it is an error where they cannot. named: whether what the recipe
    says of ``kind`` names this very stage; ``heldout_reward`` is launched as ``reward`` is, if it can be.
    """
    section = file.recipe.launch
    if kind not in TRAINS or section is None:
        return None
    own = getattr(section, kind)
    path: tuple[str, ...] = ("launch",) if own is None else ("launch", kind)
    given = section.model_dump(include={"processes", "config"})
    given |= own.model_dump(exclude_unset=True) if own is not None else {}
    given = {name: value for name, value in given.items() if value is not None}
    found: list[UserError] = []
    config = _config(file, given["config"], (*path, "config"), found) if "config" in given else {}
    processes = given.get("processes", config.get("num_processes", 1))
    if "processes" in given and config.get("num_processes", processes) != processes:
        found.append(
            UserError(
                f"processes is {processes}, and {given['config']} says num_processes: {config['num_processes']}",
                where=file.where((*path, "processes")),
                hint="give it in one of the two places, or the same in both",
            )
        )
    if not isinstance(processes, int) or isinstance(processes, bool) or processes < 1:
        found.append(UserError(f"num_processes is {processes!r}, not a number", where=file.where((*path, "config"))))
        processes = 1
    sharded = config.get("distributed_type") in SHARDED
    alone = [use.id for use in uses if use.kind in (TRAINS[kind], "trainer") and not use.distributed]
    if alone and own is not None and named and processes > 1:
        found.append(
            UserError(
                f"{alone[0]} trains in one process",
                where=file.where(path),
                hint=f"remove launch.{kind}, or write `launch: {{{kind}: {{processes: 1}}}}`",
            )
        )
    if sharded and not alone and file.recipe.device == "cpu":
        found.append(sharded_on_cpu(config["distributed_type"], file.where((*path, "config"))))
    problems.extend(found)
    if found or alone or (processes == 1 and not sharded):
        return None
    return {"processes": processes, "config": config}


def sharded_on_cpu(kind: str, where: str) -> UserError:
    """For FSDP or DeepSpeed where there is no GPU."""
    return UserError(
        f"{kind} shards a model over GPUs, and this stage runs on the CPU: accelerate would leave it whole",
        where=where,
        hint="run it where there are GPUs, or without `config`",
    )


def _config(file: RecipeFile, name: Any, path: Sequence[str], problems: list[UserError]) -> dict[str, Any]:
    """The file that ``accelerate config`` writes. It may say how the weights lie on the processes, not what is learnt:
    micro-batches, clipping and precision are the recipe's."""
    where = file.where(path)
    resolved = (file.folder / name).resolve()
    try:
        raw = resolved.read_bytes()[:MAX_BYTES].decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        problems.append(UserError(f"cannot read {name}: {problem}", where=where, hint=f"looked for {resolved}"))
        return {}
    try:
        config, _ = load_yaml(raw, str(resolved))
    except UserError as error:
        problems.append(error)
        return {}
    if not isinstance(config, dict):
        problems.append(UserError("not a mapping", where=str(resolved), hint="`accelerate config` writes such a file"))
        return {}
    kind = config.get("distributed_type", "NO")
    if kind not in (*SHARDED, *PLAIN):
        known = ", ".join((*SHARDED, *PLAIN))
        hint = f"{near_name(str(kind), (*SHARDED, *PLAIN))} Known: {known}".strip()
        problems.append(UserError(f"distributed_type {kind!r} is not supported", where=str(resolved), hint=hint))
    if config.get("num_machines", 1) != 1:
        problems.append(UserError("a stage runs on one machine", where=str(resolved), hint="set `num_machines: 1`"))
    fixed = config.get("deepspeed_config")
    if isinstance(fixed, Mapping) and fixed.get("deepspeed_config_file") is not None:
        # It could name another optimizer or batch, and accelerate refuses it beside the precision that we set.
        problems.append(
            UserError(
                "deepspeed_config_file is not supported",
                where=str(resolved),
                hint="write `zero_stage` and `offload_...` under `deepspeed_config`, as `accelerate config` does where "
                "it is told of no such file",
            )
        )
    if isinstance(fixed, Mapping) and fixed.get("zero_stage") == 0:
        problems.append(
            UserError(
                "DeepSpeed's stage 0 shares out nothing",
                where=str(resolved),
                hint="set `zero_stage` to 1, 2 or 3, or launch without `config`",
            )
        )
    if isinstance(fixed, Mapping) and fixed.get("zero_stage") == 3 and fixed.get("zero3_save_16bit_model") is not True:
        # What is trained would be lost at the end, since accelerate then refuses to put it together.
        problems.append(
            UserError(
                "DeepSpeed's stage 3 is to keep a model in parts that are never put together",
                where=str(resolved),
                hint="write `zero3_save_16bit_model: true` under `deepspeed_config`",
            )
        )
    for key in ("gradient_accumulation_steps", "gradient_clipping"):
        if isinstance(fixed, Mapping) and fixed.get(key, "auto") != "auto":
            problems.append(
                UserError(
                    f"deepspeed_config.{key} is set, and it is the recipe's to set",
                    where=str(resolved),
                    hint="write `auto`; see `batch_size`, `micro_batch` and `max_grad_norm` of the component",
                )
            )
    return config
