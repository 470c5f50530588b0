"""The worker process: runs one stage from a serialised job and leaves an artifact.

Started as ``python -m cai_core.worker JOB``, or several times over by ``accelerate launch`` (``ranks.py``). It speaks
JSON lines on the standard output it was given; everything that libraries print goes to standard error, which the run
keeps as the stage's log. Memory is freed when it ends, a crash stays in it, and it ends when its parent does: its
standard input is a pipe that then closes.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cai_core.errors import CAIError, Cancelled, EnvironmentProblem, PluginError, UserErrors
from cai_core.pipeline.components import parts
from cai_core.pipeline.job import Job, JobSpec, workdir
from cai_core.pipeline.ranks import Ranks, join_ranks, rank
from cai_core.plugins import load_plugins
from cai_core.registry import Registry

FULL = 1 << 20  # bytes: less than any artifact needs; our choice
WARNINGS = 20  # texts of warnings that become notes of a stage; our choice


def main(arguments: list[str]) -> int:
    """Run the job file named by the only argument. Returns the exit code."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    at_the_end: list[Callable[[], None]] = []
    _die_with_parent(at_the_end)
    signal.signal(signal.SIGINT, _cancel)
    signal.signal(signal.SIGTERM, _cancel)

    def write(event: dict[str, Any]) -> None:
        events.write(json.dumps(event, allow_nan=False) + "\n")

    spec: JobSpec | None = None
    path, number = Path(arguments[0]), rank()
    emit = write if number is None else join_ranks(path, write, number)
    try:
        spec = JobSpec.read(path)
        if spec.launch is None or number is not None:
            run_job(spec, emit, number or 0)
            _disconnect()
            return 0
        ranks = Ranks(path, spec, emit)
        at_the_end.append(ranks.end)
        code = ranks.run(pick_device(spec.device))
        if code == 0:
            shutil.rmtree(workdir(spec), ignore_errors=True)
        return code
    except CAIError as error:
        if isinstance(error, PluginError) and not error.where:
            error.where = _stage(spec)
        emit(_failure(error, typed=True))
        traceback.print_exc()
        return error.exit_code
    except KeyboardInterrupt:
        emit(_failure(Cancelled("stopped"), typed=True))
        return Cancelled.exit_code
    except BaseException as error:
        emit(_failure(_translated(error, spec), typed=False))
        traceback.print_exc()
        return 1


def run_job(spec: JobSpec, emit: Any, number: int = 0) -> None:
    """Run the stage function and commit its artifact. ``number``: which of the stage's processes this is; all but the
    first leave nothing."""
    from cai_core.pipeline.stages import STAGES

    start = time.monotonic()
    plugins = load_plugins(disable=spec.disabled_plugins)
    warned = _Warned({"cai_core", *(offer.origin.partition(".")[0] for offer in plugins.offers)})
    # The second one writes what without any handler would have gone to the stage's log.
    logging.basicConfig(level=logging.WARNING, handlers=[warned, logging.StreamHandler()])
    device = pick_device(spec.device)
    if spec.launch is not None and device == "cuda":
        _own_gpu()
    job = Job(spec, Registry(plugins), emit, device)
    job.first = number == 0
    folder = job.artifacts.begin(spec.kind, spec.digest) if job.first else job.workdir / f"rank-{number}"
    try:
        if job.first:
            job.check_inputs()
        else:
            folder.mkdir(parents=True, exist_ok=True)
        job.workdir.mkdir(parents=True, exist_ok=True)
        info = STAGES[spec.kind](job, folder)
        if not job.first:
            return
        info["notes"] = [*info.get("notes", ()), *warned.texts]
        info["constitution"] = {key: spec.constitution[key] for key in ("id", "version", "digest")}
        info["retried"] = job.retried()
        info["seconds"] = round(time.monotonic() - start, 1)
        if spec.launch is not None:
            info["launch"] = {**spec.launch, "ran_as": _ran_as()}
        info["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 0)
        job.artifacts.commit(folder, spec.kind, spec.digest, spec.identity, info)
    except BaseException as error:
        # Libraries have many words for a full disk (torch.save: "unexpected pos"), so the disk is asked.
        full = isinstance(error, Exception) and shutil.disk_usage(spec.store).free < FULL
        shutil.rmtree(folder, ignore_errors=True)
        if full and not isinstance(error, CAIError):
            raise _no_space(spec.store) from error
        raise
    finally:
        job.close()
        if not job.first:
            shutil.rmtree(folder, ignore_errors=True)
    if spec.launch is None:  # else other processes may still use it
        shutil.rmtree(job.workdir, ignore_errors=True)
    emit({"event": "done", "info": info})


class _Warned(logging.Handler):
    """Collects what components warn of, each text once, so that it is told and not only written to a log."""

    def __init__(self, packages: set[str]) -> None:
        super().__init__(logging.WARNING)
        self.packages = packages
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Libraries warn of much that nobody can change: only components and the core are heard."""
        text = record.getMessage()
        if record.name.partition(".")[0] in self.packages and text not in self.texts and len(self.texts) < WARNINGS:
            self.texts.append(text)


def pick_device(wanted: str) -> str:
    """ "cpu" or "cuda"; "auto" takes a GPU that works."""
    if wanted != "auto":
        return wanted
    if not any(Path("/dev").glob("nvidia[0-9]*")) and "CUDA_VISIBLE_DEVICES" not in os.environ:
        return "cpu"  # spares stages without a model the seconds that importing torch takes
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _own_gpu() -> None:
    """Of several processes each has its own GPU: what says "cuda" from here on means that one."""
    import torch

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def _disconnect() -> None:
    """When all processes are done: one that leaves early breaks the others' connections."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _ran_as() -> str:
    """What accelerate really made of the launch, e.g. MULTI_CPU or FSDP; "NO" where no component asked it."""
    state = sys.modules.get("accelerate.state")
    return str(state.AcceleratorState._shared_state.get("distributed_type", "NO")).rpartition(".")[2] if state else "NO"


def _die_with_parent(before: list[Callable[[], None]]) -> None:
    def watch() -> None:
        while os.read(0, 1024):
            pass
        for action in before:
            action()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _cancel(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt  # not an Exception: libraries that catch those let it through


def _no_space(where: str) -> EnvironmentProblem:
    hint = "free some space and give the same command again: everything committed is kept"
    return EnvironmentProblem("no space left on the disk", where=where, hint=hint)


def _translated(error: BaseException, spec: JobSpec | None) -> CAIError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return _no_space(str(error.filename or ""))
    text = str(error)
    if "No space left" in text or "os error 28" in text or "File too large" in text:
        return _no_space("")
    if isinstance(error, MemoryError):
        return EnvironmentProblem("out of memory", hint="use smaller batches or a smaller model")
    hint = "the stage's log has the traceback"
    if spec is not None and (plugin := _plugin_of(error, spec)):
        return PluginError(f"{type(error).__name__}: {text}", where=plugin, hint=f"a fault of this plugin; {hint}")
    return CAIError(f"{type(error).__name__}: {text}", where=_stage(spec), hint=hint)


def _stage(spec: JobSpec | None) -> str:
    """The stage with its components, for errors that say no more."""
    return "" if spec is None else f"stage {spec.stage_id} ({', '.join(part['id'] for part in spec.components)})"


def _plugin_of(error: BaseException, spec: JobSpec) -> str:
    """The component of the stage in whose package the error came up, as far as the traceback tells; "" if none."""
    used = {(part["kind"], part["id"]) for component in spec.components for part in parts(component)}
    offers = [offer for offer in load_plugins(disable=spec.disabled_plugins).offers if (offer.kind, offer.id) in used]
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__", ""))
        for offer in offers:
            package = offer.origin.rpartition(".")[0] or offer.origin
            if module == offer.origin or module.startswith(f"{package}."):
                return f"{offer.kind} {offer.id} ({offer.distribution} {offer.version}, plugin {offer.plugin_id})"
    return ""


def _failure(error: CAIError, *, typed: bool) -> dict[str, Any]:
    """The event of an error. typed: it was raised on purpose, so that it says what is wrong."""
    problems = error.problems if isinstance(error, UserErrors) else [error]
    described = [_described(item) for item in problems]
    return {"event": "error", "code": error.exit_code, "typed": typed, "problems": described}


def _described(error: CAIError) -> dict[str, Any]:
    return {
        "message": error.message,
        "where": error.where,
        "hint": error.hint,
        "code": error.exit_code,
        "cancelled": isinstance(error, Cancelled),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
