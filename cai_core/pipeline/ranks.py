"""The processes of a launched stage: one that starts and watches the others, by ``accelerate launch``.

A worker whose job says ``launch`` becomes the parent of as many workers with the same job. They speak to it as a worker
speaks to the run; it passes on what the first of them says, and of an error that one process's fault has brought upon
all it passes on the cause. None outlives it: their standard input is the run's pipe, which it holds too.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from cai_core.errors import EnvironmentProblem, UserError
from cai_core.pipeline.job import JobSpec
from cai_core.pipeline.launch import SHARDED, sharded_on_cpu

LAUNCHED = "CAI_LAUNCHED"
LAST_LINES = 5  # of a dead process's output in its error; our choice

Emit = Callable[[dict[str, Any]], None]


def rank() -> int | None:
    """Which of a stage's processes this is, from 0; None in a worker that is the only one or that launches others."""
    return int(os.environ["RANK"]) if os.environ.get(LAUNCHED) else None


def join_ranks(job: Path, emit: Emit, number: int) -> Emit:
    """Say that this process is there, keep its output apart, and return how it speaks: one line at a time, and all but
    the first process only of errors."""
    if number:
        log = os.open(_log(job, number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)

    def say(event: dict[str, Any]) -> None:
        if number == 0 or event["event"] in ("rank", "error"):
            with job.open("rb") as lock:  # a pipe keeps no long line in one piece
                fcntl.flock(lock, fcntl.LOCK_EX)
                emit({**event, "rank": number})

    say({"event": "rank", "pid": os.getpid()})
    return say


class Ranks:
    """Launches the processes of ``spec`` and waits for them."""

    def __init__(self, job: Path, spec: JobSpec, emit: Emit) -> None:
        assert spec.launch is not None
        self.job = job
        self.processes = int(spec.launch["processes"])
        self.config = dict(spec.launch["config"])
        self.emit = emit
        self.pids: dict[int, int] = {}
        self.errors: list[dict[str, Any]] = []
        self.done: dict[str, Any] | None = None
        self.before: dict[Path, int] = {}  # bytes of each log that an earlier attempt wrote

    def run(self, device: str) -> int:
        """Returns the exit code; the event that belongs to it has then been emitted. Raises ``UserError`` where this
        machine cannot do what the recipe asks, and ``EnvironmentProblem`` where a process died."""
        self._check(device)
        config = self.job.with_name(self.job.name.replace(".job.json", ".accelerate.yaml"))
        plain = self.config.get("distributed_type") not in SHARDED
        kind = ("MULTI_CPU" if device == "cpu" else "MULTI_GPU") if plain else self.config["distributed_type"]
        given = {
            "compute_environment": "LOCAL_MACHINE",
            "main_process_port": 0,  # a free one
            **self.config,
            "distributed_type": kind,
            "num_machines": 1,
            "num_processes": self.processes,
            "use_cpu": device == "cpu",
            "mixed_precision": "no" if device == "cpu" else "bf16",
        }
        if kind == "FSDP":  # else all but the first process begin with empty weights, which reward models' heads cannot
            given["fsdp_config"] = {**(given.get("fsdp_config") or {}), "fsdp_cpu_ram_efficient_loading": False}
        config.write_text(yaml.safe_dump(given), encoding="utf-8")
        arguments = ["--config_file", str(config), "--num_processes", str(self.processes), "--num_machines", "1"]
        # On a CPU accelerate starts one process unless it is told this; the gloo backend then follows from use_cpu.
        arguments += ["--multi_gpu"] if plain else []
        os.environ |= {LAUNCHED: "1", **({"ACCELERATE_USE_CPU": "true"} if device == "cpu" else {})}
        logs = [_log(self.job, number) for number in range(self.processes)]
        self.before = {log: log.stat().st_size for log in logs if log.exists()}
        listener = self._listen()
        try:
            failures = _launch([*arguments, "--module", "cai_core.worker", str(self.job)])
        finally:
            os.dup2(2, 1)  # closes our end of the pipe
            listener.join(5)
        if failures:
            return self._failed(failures)
        if self.done is None:
            raise EnvironmentProblem("the launched processes ended without a result", hint="the log has the details")
        self.emit(self.done)
        return 0

    def end(self) -> None:
        """Kill all processes and wait until they are gone."""
        for pid in list(self.pids.values()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in list(self.pids.values()):
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    def _check(self, device: str) -> None:
        kind = self.config.get("distributed_type")
        if device == "cpu" and kind in SHARDED:
            raise sharded_on_cpu(str(kind), "launch.config")
        if device != "cpu":
            import torch

            if torch.cuda.device_count() < self.processes:
                raise UserError(
                    f"{self.processes} processes, and there are {torch.cuda.device_count()} GPUs",
                    where="launch.processes",
                    hint="a process has a GPU to itself: lower `processes`, or set `device: cpu`",
                )

    def _listen(self) -> threading.Thread:
        """What the processes say arrives at our standard output, which they inherit."""
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(writer)

        def listen() -> None:
            with os.fdopen(reader, encoding="utf-8") as stream:
                for line in stream:
                    try:
                        event = json.loads(line)
                    except ValueError:
                        continue
                    if event.get("event") == "rank":
                        self.pids[event["rank"]] = event["pid"]
                    elif event.get("event") == "error":
                        self.errors.append(event)
                    elif event.get("event") == "done":
                        self.done = event
                    else:
                        self.emit(event)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        return thread

    def _failed(self, failures: Mapping[int, tuple[int, float]]) -> int:
        """Emit the cause. The end of one process breaks the connections of the others, which then fail as well: what a
        process said on purpose comes first, then one that died without a word, then the first that failed."""
        spoke = [event for event in self.errors if not any(item["cancelled"] for item in event["problems"])]
        said = next((event for event in spoke if event["typed"]), None)
        silent = failures.keys() - {event["rank"] for event in self.errors}
        # SIGTERM is how the others are ended.
        died = sorted((failures[n][1], n) for n in silent if failures[n][0] != -signal.SIGTERM)
        if said is None and died:
            number = died[0][1]
            raise self._dead(number, failures[number][0])
        event = said or next(iter(spoke), None) or next(iter(self.errors), None)
        if event is None:
            number = min(failures)
            raise self._dead(number, failures[number][0])
        if not event["typed"]:
            for item in event["problems"]:
                item["message"] = f"{self._name(event['rank'])}: {item['message']}"
                item["where"] = item["where"] or str(_log(self.job, event["rank"]))
        self.emit(event)
        return int(event["code"]) or 1

    def _dead(self, number: int, code: int) -> EnvironmentProblem:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        log = _log(self.job, number)
        if not log.exists():  # it did not come as far as its own: what it said is in the stage's
            log = _log(self.job, 0)
        last = ""
        with suppress(OSError):
            said_now = log.read_bytes()[self.before.get(log, 0) :].decode("utf-8", "replace")
            lines = [line for line in said_now.splitlines() if line.strip()]
            last = "\n  ".join(lines[-LAST_LINES:])
        hint = "out of memory? use smaller batches (`micro_batch`)" if code == -signal.SIGKILL else ""
        said = f"its last lines:\n  {last}" if last else "it said nothing"
        return EnvironmentProblem(
            f"{self._name(number)} died ({how}), and the others were stopped",
            where=str(log),
            hint="; ".join(part for part in (hint, said) if part),
        )

    def _name(self, number: int) -> str:
        return f"process {number} of {self.processes}"


def _launch(arguments: list[str]) -> dict[int, tuple[int, float]]:
    """Run ``accelerate launch`` here and return how processes failed: number -> exit code and time."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except ChildFailedError as error:
        return {number: (failure.exitcode, failure.timestamp) for number, failure in error.failures.items()}
    except SignalException:
        raise KeyboardInterrupt from None
    except SystemExit as error:
        raise UserError("accelerate refuses the launch", where="launch.config", hint="the log says why") from error
    except (ValueError, AssertionError, ImportError) as error:
        raise UserError(f"accelerate refuses the launch: {error}", where="launch.config") from error
    return {}


def _log(job: Path, number: int) -> Path:
    """Where a process's output goes: the stage's log, or one of its own beside it."""
    return job.with_name(job.name.replace(".job.json", f".rank{number}.log" if number else ".log"))
