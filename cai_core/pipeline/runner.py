"""Runs a plan: one worker process per stage that is not there yet, and a run folder that says what happened."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Protocol

from cai_core import __version__
from cai_core.errors import CAIError, Cancelled, EnvironmentProblem, UserError, UserErrors
from cai_core.pipeline.graph import ModelUse, Stage, answerer, snapshot_name
from cai_core.pipeline.job import JobSpec
from cai_core.pipeline.labels import audit_accuracy, audit_flag, by_people
from cai_core.pipeline.models import fetch
from cai_core.pipeline.plan import TRAINED, Plan, PlannedStage
from cai_core.pipeline.ranks import LAUNCHED
from cai_core.store.artifacts import Artifact, Artifacts
from cai_core.store.canonical import write_json
from cai_core.store.lock import store_lock
from cai_core.types.rl import snapshot_folder

SCHEMA_VERSION = 1
GRACE_S = 5.0  # a stopped worker has this long to leave; our choice: what a person at a terminal puts up with
_PACKAGES = ("cai-core", "torch", "transformers", "trl", "datasets", "evaluate", "pydantic", "pluggy", "peft")


_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", LAUNCHED)


class Observer(Protocol):
    """Told what happens; the command line draws it."""

    def say(self, text: str) -> None:
        """A line for people."""
        ...

    def stage_started(self, stage: str, number: int, total: int) -> None:
        """A stage begins."""
        ...

    def progress(self, stage: str, done: int, total: int, note: str) -> None:
        """``done`` of ``total`` units or steps."""
        ...

    def stage_ended(self, stage: str, status: str, info: Mapping[str, Any]) -> None:
        """status: ok, partial, reused, error or cancelled."""
        ...


def run_plan(
    plan: Plan,
    store: Path,
    run_folder: Path,
    observer: Observer,
    *,
    until: str | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Run what is missing and return the content of ``run.json``.

    Raises the error of the stage that failed; ``run.json`` then says ``error`` or ``cancelled``, and the same call
    goes on from what was committed.
    """
    if until is not None and until not in {p.stage.id for p in plan.stages} | {p.stage.kind for p in plan.stages}:
        raise UserError(
            f"--until {until}: the recipe has no such stage",
            hint=f"stages: {', '.join(p.stage.id for p in plan.stages)}",
        )
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        (run_folder / "logs").mkdir(exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write the run folder: {error.strerror}", where=str(run_folder)) from error
    with store_lock(store, say=observer.say) as lock:
        return _Run(plan, store, run_folder, observer, lock, command).run(until)


class _Run:
    def __init__(
        self,
        plan: Plan,
        store: Path,
        folder: Path,
        observer: Observer,
        lock: int,
        command: str,
    ) -> None:
        self.plan = plan
        self.store = store
        self.folder = folder
        self.observer = observer
        self.lock = lock
        self.artifacts = Artifacts(store / "artifacts")
        self.artifacts.sweep()
        self.record = self._record(command)

    def run(self, until: str | None) -> dict[str, Any]:
        self._save("started")
        for note in self.plan.graph.notes:
            self.observer.say(note)
        try:
            for number, planned in enumerate(self.plan.stages):
                self._stage(planned, number)
                if until in (planned.stage.id, planned.stage.kind) and not any(
                    later.stage.kind == until for later in self.plan.stages[number + 1 :]
                ):
                    break
        except (Cancelled, KeyboardInterrupt) as error:
            self._save("cancelled")
            raise Cancelled(
                "stopped; everything committed is kept", hint="give the same command again to go on"
            ) from error
        except BaseException:
            self._save("error")
            raise
        statuses = {stage["status"] for stage in self.record["stages"]}
        self._save("partial" if "partial" in statuses else "ok")
        return self.record

    def _stage(self, planned: PlannedStage, number: int) -> None:
        stage = planned.stage
        entry = self.record["stages"][number]
        artifact = self.artifacts.find(stage.kind, planned.digest)
        if stage.kind in ("reward", "rl") and "label" in stage.inputs:
            self._warn_of_labeler(stage)
        if artifact is None:
            if self.artifacts.damaged(stage.kind, planned.digest):
                moved = self.artifacts.quarantine(stage.kind, planned.digest)
                self.observer.say(f"{stage.id}: its artifact was damaged and is kept as {moved.name}; making it anew")
            self.observer.stage_started(stage.id, number + 1, len(self.plan.stages))
            entry["status"] = "started"
            self._save("started")
            try:
                artifact = self._make(planned)
            except BaseException as error:
                entry["status"] = "cancelled" if isinstance(error, (Cancelled, KeyboardInterrupt)) else "error"
                entry["error"] = str(error)
                self.observer.stage_ended(stage.id, entry["status"], {})
                raise
            status = "partial" if artifact.info.get("failed") else "ok"
            self.observer.stage_ended(stage.id, status, artifact.info)
        else:
            status = "reused"
            self.observer.stage_ended(stage.id, status, artifact.info)
        entry.update(status="partial" if artifact.info.get("failed") else "ok", reused=status == "reused")
        told = ("seconds", "peak_mb", "ok", "failed", "launch")
        entry["info"] = {k: artifact.info[k] for k in told if k in artifact.info}
        entry.pop("error", None)
        if stage.kind == "report":
            self._publish(artifact)
        self._save("started")

    def _warn_of_labeler(self, learner: Stage) -> None:
        """Say before a model learns from labels what the audit found. No option of a recipe silences it."""
        label = next(p.stage for p in self.plan.stages if p.stage.id == learner.inputs["label"])
        if by_people(use.id for use in label.components):
            return
        audits = [p for p in self.plan.stages if p.stage.kind == "audit" and _audits(p.stage, label)]
        flag: str | None = "the labeler was never audited: nothing is known about its labels"
        for planned in audits:
            artifact = self.artifacts.find("audit", planned.digest)
            assert artifact is not None, "the audit is an earlier stage"
            flag = audit_flag(audit_accuracy(artifact))
        if flag:
            self.observer.say(f"WARNING: {learner.id} learns from {label.id}, and {flag}.")
            self.record["warnings"].append({"stage": learner.id, "text": flag})

    def _make(self, planned: PlannedStage) -> Artifact:
        stage = planned.stage
        if stage.kind == "prompts" and not stage.models:
            folder = self.artifacts.begin(stage.kind, planned.digest)
            info = self.plan.prompts.write(folder)
            return self.artifacts.commit(folder, stage.kind, planned.digest, planned.identity, info)
        for use in stage.models.values():
            if use.name:
                fetch(self.plan.models[use.name], self.observer.say)
        spec = self._spec(planned)
        job = self.folder / "logs" / f"{_slug(stage.id)}.job.json"
        spec.write(job)
        run_worker(
            job,
            self.folder / "logs" / f"{_slug(stage.id)}.log",
            self.lock,
            lambda done, total, note: self.observer.progress(stage.id, done, total, note),
        )
        artifact = self.artifacts.find(stage.kind, planned.digest)
        if artifact is None:
            raise CAIError(f"the worker of {stage.id} ended without its artifact", where=str(self.folder / "logs"))
        return artifact

    def _spec(self, planned: PlannedStage) -> JobSpec:
        stage = planned.stage
        digests = {p.stage.id: (p.stage.kind, p.digest) for p in self.plan.stages}
        models = {}
        for role, use in stage.models.items():
            if use.stage:
                models[role] = str(self.artifacts.path(*digests[use.stage]) / snapshot_folder(use.snapshot))
            else:
                models[role] = self.plan.models[use.name].location
        return JobSpec(
            stage_id=stage.id,
            kind=stage.kind,
            digest=planned.digest,
            identity=planned.identity,
            store=str(self.store.resolve()),
            seed=self.plan.file.recipe.seed,
            device=self.plan.file.recipe.device,
            inputs={name: digests[source] for name, source in stage.inputs.items()},
            models=models,
            components=tuple(use.as_dict() for use in stage.components),
            settings={**stage.settings, **stage.places},
            constitution=asdict(self.plan.constitution),
            disabled_plugins=self.plan.file.recipe.plugins.disable,
            recipe=self._recipe_facts() if stage.kind == "report" else None,
            launch=stage.launch,
            attempt=self.plan.attempt,
        )

    def _recipe_facts(self) -> dict[str, Any]:
        sources = {}
        for planned in self.plan.stages:
            if planned.stage.kind == "answers":
                name = answerer(planned.stage.id)
                use = planned.stage.models["policy"]
                sources[name] = {
                    "source": self._source(use),
                    "digest": planned.identity["models"]["policy"],
                }
        return {
            "run_id": self.plan.run_id,
            "name": self.plan.file.recipe.name,
            "text": self.plan.file.text,
            "model_sources": sources,
            "components": self.record["components"],
            "environment": self.record["environment"],
            "command": self.record["command"],
        }

    def _source(self, use: ModelUse) -> str:
        """The name of a model from outside, or the stage that made a model and the name of what it began with."""
        if not use.stage:
            return use.name
        stages = {planned.stage.id: planned.stage for planned in self.plan.stages}
        origin = use
        while origin.stage:
            made = stages[origin.stage]
            origin = made.models[TRAINED[made.kind]]
        return f"stage {snapshot_name(use.stage, use.snapshot)}, from {origin.name}"

    def _publish(self, artifact: Artifact) -> None:
        for entry in artifact.info["files"]:
            target = self.folder / entry["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.tmp")
            shutil.copyfile(artifact.path / entry["file"], temporary)
            temporary.replace(target)
        self.record["report"] = [entry["file"] for entry in artifact.info["files"]]
        self.record["summary"] = artifact.info["summary"]
        self.record["findings"] = artifact.info["findings"]

    def _record(self, command: str) -> dict[str, Any]:
        recipe = self.plan.file.recipe
        components = {}
        for planned in self.plan.stages:
            for use in (part for whole in planned.stage.components for part in whole.parts()):
                components[use.kind, use.id] = {
                    "kind": use.kind,
                    "id": use.id,
                    "version": use.version,
                    "revision": use.revision,
                    "origin": use.id.partition("/")[0],
                }
        return {
            "schema": SCHEMA_VERSION,
            "run_id": self.plan.run_id,
            "recipe_name": recipe.name,
            "recipe": recipe.model_dump(mode="json", by_alias=True),
            "constitution": {"id": self.plan.constitution.id, "digest": self.plan.constitution.digest},
            "models": {m.name: {"source": m.source, "digest": m.digest} for m in self.plan.models.values()},
            "components": [components[key] for key in sorted(components)],
            "seed": recipe.seed,
            "environment": environment(),
            "command": command,
            "warnings": [],
            "stages": [
                {
                    "id": p.stage.id,
                    "kind": p.stage.kind,
                    "digest": p.digest,
                    "identity": p.identity,
                    "status": "waiting",
                }
                for p in self.plan.stages
            ],
        }

    def _save(self, status: str) -> None:
        self.record["status"] = status
        write_json(self.folder / "run.json", self.record)


def run_worker(job: Path, log: Path, lock: int, progress: Callable[[int, int, str], None]) -> None:
    """Run a job file in a process of its own and wait. Raises what the worker reports.

    The worker leads its own session, so that Ctrl-C reaches this process alone, which then stops the worker: politely,
    and after ``GRACE_S`` seconds or on a second Ctrl-C for good.
    """
    with log.open("a", encoding="utf-8") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "cai_core.worker", str(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            encoding="utf-8",
            pass_fds=(lock,),
            start_new_session=True,
            env=_worker_environment(),
        )
    assert process.stdout is not None
    errors: list[dict[str, Any]] = []
    try:
        _listen(process.stdout, progress, errors)
        code = process.wait()
    except BaseException:
        _stop(process)
        raise
    finally:
        if process.stdin:
            process.stdin.close()
    if errors:
        raise _from_worker(errors[-1], log)
    if code != 0:
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        hint = "out of memory? use smaller batches" if code == -9 else "the log has the details"
        raise EnvironmentProblem(f"the worker process died ({name})", where=str(log), hint=hint)


def _worker_environment() -> dict[str, str]:
    settings = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    # What another program's launcher left in the environment would be read as this stage's.
    given = {k: v for k, v in os.environ.items() if k not in _LAUNCHER and not k.startswith(("ACCELERATE_", "FSDP_"))}
    # Threads that wait for each other by spinning are 20 times as slow as soon as another program uses one core.
    return {"OMP_WAIT_POLICY": "passive", **given, **settings}


def _listen(
    stream: IO[str], progress: Callable[[int, int, str], None], errors: list[dict[str, Any]]
) -> None:
    for line in stream:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("event") == "progress":
            progress(int(event["done"]), int(event["total"]), str(event["note"]))
        elif event.get("event") == "error":
            errors.append(event)


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    drained = threading.Thread(target=lambda: process.stdout and process.stdout.read(), daemon=True)
    drained.start()
    try:
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    except KeyboardInterrupt:
        pass
    if process.poll() is None and process.stdin:
        process.stdin.close()  # a worker that launched others ends them first
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(1)
    if process.poll() is None:
        process.kill()
    process.wait()


def _from_worker(event: Mapping[str, Any], log: Path) -> CAIError:
    problems = []
    for item in event["problems"]:
        if item["cancelled"]:
            return Cancelled("stopped")
        kind = UserError if item["code"] == 2 else EnvironmentProblem
        where = item["where"] or ("" if item["code"] == 2 else str(log))
        problems.append(kind(item["message"], where=where, hint=item["hint"]))
    if len(problems) == 1:
        return problems[0]
    return UserErrors([p for p in problems if isinstance(p, UserError)])


def environment() -> dict[str, str]:
    """What ran where: versions and hardware, no paths and no names of people or hosts."""
    found = {"python": platform.python_version(), "system": platform.platform(), "cores": str(os.cpu_count())}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    found["cai-core"] = __version__
    return found


def _audits(audit: Stage, label: Stage) -> bool:
    """Whether ``audit`` measured what gives the labels: the same labeler with the same models. An evaluator that asks
    for no labeler speaks for every labeler of its judge."""
    own, given = ([use.identity() for use in stage.components if use.kind == "labeler"] for stage in (audit, label))
    if own:
        return own == given and all(audit.models.get(role) == use for role, use in label.models.items())
    return "judge" in label.models and audit.models.get("judge") == label.models["judge"]


def _slug(stage_id: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in stage_id).strip("-")
