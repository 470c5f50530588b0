"""Components that break their contract while a run is at work, in real processes: the run stops, names the component,
keeps what was finished, and goes on when the component is mended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = '''
import logging
import math
from collections.abc import Sequence
from typing import Literal
from pydantic import BaseModel, ConfigDict, Field
from cai_core.hookspecs import hookimpl
from cai_core.types.backend import GenerateRequest, Sampling
from cai_core.types.component import Component
from cai_core.types.evaluator import EvalRow, EvalUnit, Metric
from cai_core.types.labeler import Label
from cai_core.types.principles import Principle
from cai_core.types.prompts import Prompt
from cai_core.types.records import Message, ModelInput
from cai_core.types.trainer import TrainResult


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    fault: str = Field("none", description="what goes wrong")


class Prompts:
    def __init__(self, fault):
        self.fault = fault

    def load(self):
        if self.fault == "raises":
            raise ConnectionError("no route")
        if self.fault == "no prompt":
            return ["How do I bake bread?"]
        return [Prompt("p", (Message("user", "Hello?"),), "redteam" if self.fault == "kind" else "red_team")]


class Labeler:
    def __init__(self, fault):
        self.fault = fault
        if fault == "factory":
            raise RuntimeError("no licence key")

    def label(self, comparisons):
        fault = self.fault
        if fault == "returns nothing":
            return None
        return self.labels(comparisons)

    def labels(self, comparisons):
        for number, c in enumerate(comparisons):
            if self.fault == "warns":
                logging.getLogger(__name__).warning("going on with half as many at a time")
                logging.getLogger("some_library").warning("a deprecation")
            if self.fault == "raises":
                raise KeyError("verdict")
            if self.fault == "drops one" and number == 0:
                continue
            p = {"nan": math.nan, "two": 2.0, "no label and no failure": None}.get(self.fault, 0.4)
            evidence = {"evidence": {"x": {1, 2}}, "given": {"given": {"weight": 9.0}}}.get(self.fault, {})
            yield Label("other" if self.fault == "unknown id" else c.id, p, evidence)
            if self.fault == "twice":
                yield Label(c.id, p)


class Sampler:
    def __init__(self, fault):
        self.fault = fault

    def sample(self, principles, *, prompt, step, index, rng):
        if self.fault == "list":
            return list(principles)
        if self.fault == "empty":
            return ()
        if self.fault == "foreign":
            return (Principle("mine", comparison="Which is mine?", critique="c", revision="r"),)
        return (principles[0],)


class Evaluator:
    def __init__(self, fault):
        self.fault = fault

    def units(self, given):
        return [EvalUnit(a.prompt.id, a.model, {}) for a in given.answers] or [EvalUnit("1", given.models[0], {})]

    def run(self, units):
        for u in units:
            if self.fault == "raises":
                raise ZeroDivisionError("by zero")
            yield EvalRow("other" if self.fault == "unknown row" else u.id, u.model,
                          {"x": math.nan if self.fault == "nan row" else 1.0})

    def summarise(self, rows):
        if self.fault == "summary raises":
            raise IndexError("no rows")
        value = math.nan if self.fault == "nan metric" else 1.0
        return [Metric("mine", "mine", rows[0].model, value, None, None, len(rows))]


class Reward:
    def __init__(self, fault):
        self.fault = fault

    def fit(self, model, preferences, out):
        if self.fault == "writes nothing":
            return TrainResult()
        out.mkdir()
        (out / "x").write_text("x")
        if self.fault == "no result":
            return None
        return TrainResult({"x": math.nan} if self.fault == "nan" else {})

    def load(self, path):
        pass

    def score(self, exchanges):
        return [0.0] * len(exchanges)


class Asking(Reward):
    def __init__(self, context):
        super().__init__("none")
        self.context = context

    def fit(self, model, preferences, out):
        request = GenerateRequest("q", ModelInput(text="Is it good?"), Sampling(4), 1)
        (said,) = self.context.backend("judge").generate([request])
        assert said.text
        return super().fit(model, preferences, out)


class Template:
    critiques = True

    def __init__(self, fault):
        self.fault = fault

    def answer(self, prompt):
        return "text" if self.fault == "no input" else ModelInput(messages=prompt)

    def critique(self, prompt, response, principle):
        if self.fault == "raises":
            raise KeyError("response")
        return ModelInput(messages=prompt)

    def revision(self, prompt, response, critique, principle):
        return ModelInput(messages=prompt)

    def read_answer(self, text, *, cut=False):
        return text

    read_critique = read_revision = read_answer


class Reporter:
    def __init__(self, fault):
        self.fault = fault

    def write(self, results, out):
        if self.fault == "raises":
            raise ValueError("bad template")
        path = (out.parent.parent.parent / "x.txt") if self.fault == "outside" else out / "x.txt"
        path.write_text("x")
        return [path]


def offer(cls):
    return [Component("faulty", Options, lambda options, context: cls(options.fault), "does one thing wrong")]


cai_register_prompts = hookimpl(lambda: offer(Prompts), specname="cai_register_prompts")
cai_register_labelers = hookimpl(lambda: offer(Labeler), specname="cai_register_labelers")
cai_register_principle_samplers = hookimpl(lambda: offer(Sampler), specname="cai_register_principle_samplers")
cai_register_evaluators = hookimpl(lambda: offer(Evaluator), specname="cai_register_evaluators")


@hookimpl
def cai_register_reward_models():
    yield from offer(Reward)
    make = lambda options, context: Asking(context)
    yield Component("asking", Options, make, "asks the judge and says so", roles=("judge",))
    yield Component("silent", Options, make, "asks the judge and does not say so")


cai_register_critique_templates = hookimpl(lambda: offer(Template), specname="cai_register_critique_templates")
cai_register_reporters = hookimpl(lambda: offer(Reporter), specname="cai_register_reporters")
'''

RECIPE = """
schema: 1
name: faulty
models: {base: "org/none"}
backend: echo
prompts: {name: builtin, red_team: 3, helpful: 1, heldout_red_team: 2, heldout_helpful: 0, heldout_borderline: 0}
revise: {rounds: 1, critique_template: chat}
pairs: {}
label: {labeler: faulty, audit: null}
reward: faulty
evaluate: [faulty]
report: [json]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("faulty")
    info = home / "site/my_faults-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-faults\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[cai_core]\nfaults = my_faults.plugin\n")
    (home / "site/my_faults").mkdir()
    (home / "site/my_faults/__init__.py").write_text("")
    (home / "site/my_faults/plugin.py").write_text(PLUGIN)
    (home / "recipe.yaml").write_text(RECIPE)
    code, said = cai(home)
    assert code == 0, said
    return home


def cai(home: Path, *overrides: str) -> tuple[int, str]:
    options = [part for override in overrides for part in ("-o", override)]
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", "run", "recipe.yaml", *options],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home / "site"), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


FAULTS = {
    "prompts={name: faulty, fault: raises}": "ConnectionError: no route",
    "prompts={name: faulty, fault: no prompt}": "it gave str, not Prompt",
    "prompts={name: faulty, fault: kind}": "has kind 'redteam'",
    **{
        f"label.labeler={{name: faulty, fault: {fault}}}": says
        for fault, says in {
            "factory": "no licence key",
            "returns nothing": "TypeError",
            "raises": "KeyError",
            "drops one": "no result came back for 1 units",
            "unknown id": "a result came back for 'other'",
            "twice": "has one already",
            "nan": "p_a = nan",
            "two": "p_a = 2.0",
            "no label and no failure": "p_a = None",
            "evidence": "is not JSON",
            "given": "gave evidence 'given'",
        }.items()
    },
    **{
        f"label.principle_sampler={{name: faulty, fault: {fault}}}": "not a tuple of at least one of the given"
        for fault in ("list", "empty", "foreign")
    },
    **{
        f"revise.critique_template={{name: faulty, fault: {fault}}}": says
        for fault, says in {"raises": "KeyError", "no input": "not ModelInput"}.items()
    },
    **{
        f"reward={{name: faulty, fault: {fault}}}": says
        for fault, says in {
            "writes nothing": "wrote no model",
            "no result": "returned NoneType, not TrainResult",
            "nan": "is not JSON",
        }.items()
    },
    **{
        f"evaluate.evaluators=[{{name: faulty, fault: {fault}}}]": says
        for fault, says in {
            "raises": "ZeroDivisionError",
            "unknown row": "a result came back for",
            "nan row": "is not JSON",
            "nan metric": "is not JSON",
            "summary raises": "IndexError",
        }.items()
    },
    "reward=silent": "must name the role in `roles` of Component",
    "label.audit=faulty": "cannot audit a judge",
    "report=[{name: faulty, fault: raises}]": "bad template",
    "report=[{name: faulty, fault: outside}]": "outside",
}


@pytest.mark.parametrize("override", FAULTS)
def test_a_broken_contract_stops_the_stage_and_names_the_component(override: str, home: Path) -> None:
    code, said = cai(home, override)
    assert code == 1, said
    assert FAULTS[override] in said
    assert "my-faults/" in said, "which component"
    assert "Traceback" not in said


def test_a_component_gets_the_model_that_it_declared(home: Path) -> None:
    code, said = cai(home, "reward=asking")
    assert code == 0, said


def test_what_a_component_warns_of_is_told_once_and_kept(home: Path) -> None:
    code, said = cai(home, "label.labeler={name: faulty, fault: warns}", "name=warns")
    assert code == 0, said
    assert said.count("going on with half as many at a time") == 1
    assert "a deprecation" not in said
    (run,) = (home / "runs").glob("warns-*")
    assert "going on with half as many at a time" in (run / "report.json").read_text()
    log = (run / "logs/label.log").read_text()
    assert log.count("going on with half as many at a time") > 1
    assert "a deprecation" in log


def test_nothing_was_lost_by_all_that(home: Path) -> None:
    code, said = cai(home)
    assert code == 0
    assert "nothing was run again" in said
