"""The kit finds what is wrong: a component with a fault fails the test that is meant for it.

The sound component that each faulty one is made from passes (the labeler here; the examples of the hooks, as packages,
in ``tests/e2e/test_third_party.py``), so a failure is the fault's doing.
"""

from __future__ import annotations

import inspect
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cai_core.plugins import KINDS
from cai_core.testing import CONFORMANCE, VERDICTS, Conformance, LabelerConformance, TestContext
from cai_core.types.backend import Completion, GenerateRequest, Sampling
from cai_core.types.labeler import Comparison, Label
from cai_core.types.records import Message, ModelInput, UnitFailure
from cai_core.types.trainer import TrainResult

LEARNS = {"trainer": {"learning_rate": 0.05}, "rl_algorithm": {"learning_rate": 0.3, "steps": 60, "samples": 16}}


def example(kind: str) -> SimpleNamespace:
    """The classes and functions of the example in a hook's documentation."""
    from cai_core import hookspecs

    names: dict[str, Any] = {"__name__": f"example_{kind}"}
    code = inspect.cleandoc(getattr(hookspecs, KINDS[kind].hook).__doc__).partition("Example::\n")[2]
    exec(compile(inspect.cleandoc(code), kind, "exec"), names)
    return SimpleNamespace(**names)


class Spoken:
    """A sound labeler whose judge answers in words: both orders, strict reading."""

    def __init__(self, context: TestContext) -> None:
        self.context = context

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        requests = [
            GenerateRequest(f"{number}/{order}", self.question(c, order), Sampling(8), c.seed)
            for number, c in enumerate(comparisons)
            for order in self.orders()
        ]
        said: dict[int, list[Completion]] = {number: [] for number in range(len(comparisons))}
        for completion in self.context.backend("judge").generate(requests):
            said[int(completion.id.split("/")[0])].append(completion)
        for number, comparison in enumerate(comparisons):
            yield self.decide(comparison, sorted(said[number], key=lambda completion: completion.id))

    def orders(self) -> tuple[int, ...]:
        return (0, 1)

    def question(self, comparison: Comparison, order: int) -> ModelInput:
        shown = (comparison.response_a, comparison.response_b)[:: -1 if order else 1]
        text = f"{comparison.prompt[-1].content}\n(A) {shown[0]}\n(B) {shown[1]}\nWhich is better, (A) or (B)?"
        return ModelInput(messages=(Message("user", text),))

    def decide(self, comparison: Comparison, said: Sequence[Completion]) -> Label:
        votes = []
        for completion in said:
            if completion.failure:
                return self.failed(comparison, completion.failure)
            letter = self.read(completion.text)
            if letter is None:
                return self.failed(comparison, UnitFailure("unparseable", f"no verdict in {completion.text[:40]!r}"))
            first_is_a = completion.id.endswith("/0")
            votes.append(float((letter == "A") == first_is_a))
        return Label(comparison.id, sum(votes) / len(votes))

    def failed(self, comparison: Comparison, failure: UnitFailure) -> Label:
        return Label(comparison.id, None, failure=failure)

    def read(self, text: str) -> str | None:
        found = re.fullmatch(r"\s*\(?([AB])\)?[.\s]*", text)
        return found[1] if found else None


class OneOrder(Spoken):
    def orders(self) -> tuple[int, ...]:
        return (0,)


class WrongWayRound(Spoken):
    def decide(self, comparison: Comparison, said: Sequence[Completion]) -> Label:
        label = super().decide(comparison, said)
        return label if label.p_a is None else replace(label, p_a=1 - label.p_a)


class FailureIsATie(Spoken):
    def failed(self, comparison: Comparison, failure: UnitFailure) -> Label:
        return Label(comparison.id, 0.5)


class FirstLetterFound(Spoken):
    def read(self, text: str) -> str | None:
        found = re.search(r"[AB]", text)
        return found[0] if found else None


class LastLetterFound(Spoken):
    def read(self, text: str) -> str | None:
        found = re.findall(r"\(([AB])\)", text)
        return found[-1] if found else None


class DefaultsToA(Spoken):
    def read(self, text: str) -> str | None:
        return super().read(text) or "A"


class TooStrict(Spoken):
    def read(self, text: str) -> str | None:
        return text if text in ("A", "B") else None


class LosesOne(Spoken):
    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        yield from list(super().label(comparisons))[:-1]


class ComparedWithTheBatch(Spoken):
    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        for c in comparisons:
            yield Label(c.id, min(1.0, len(c.response_a) / sum(len(o.response_a) for o in comparisons)))


class TestSpoken(LabelerConformance):
    """The sound one passes."""

    def make(self, context: TestContext, **changed: Any) -> Spoken:
        return Spoken(context)


LABELERS = {
    "one order": (OneOrder, "test_a_judge_that_says_first_decides_nothing"),
    "the wrong way round": (WrongWayRound, "test_the_label_follows_the_judge"),
    "a failure counts as a tie": (FailureIsATie, "test_a_judge_that_fails_gives_no_label"),
    "an unreadable verdict counts as a tie": (FailureIsATie, "test_verdicts_are_read_or_refused_and_never_guessed"),
    "the first letter is the verdict": (FirstLetterFound, "test_verdicts_are_read_or_refused_and_never_guessed"),
    "the last letter is the verdict": (LastLetterFound, "test_verdicts_are_read_or_refused_and_never_guessed"),
    "A is the default": (DefaultsToA, "test_verdicts_are_read_or_refused_and_never_guessed"),
    "plain verdicts are not read": (TooStrict, "test_verdicts_are_read_or_refused_and_never_guessed"),
    "a comparison is dropped": (LosesOne, "test_one_label_per_comparison"),
    "a label depends on the batch": (ComparedWithTheBatch, "test_a_label_depends_on_its_comparison_alone"),
}


def must_fail(
    base: type[Conformance], test: str, make: Callable[..., Any], folder: Path, model: Path, **more: Any
) -> None:
    """``test`` of the contract neither passes nor is skipped."""
    method = getattr(type("Faulty", (base,), {"make": make, "__module__": __name__, **more})(), test)
    given = {"tmp_path": folder, "cai_tiny_model": model}
    try:
        method(**{name: given[name] for name in inspect.signature(method).parameters})
    except pytest.skip.Exception as skipped:
        raise AssertionError(f"{test} was skipped: {skipped}") from None
    except (Exception, pytest.fail.Exception):
        return
    raise AssertionError(f"{test} passed")


@pytest.mark.parametrize("fault", LABELERS)
def test_a_faulty_labeler_is_caught(fault: str, tmp_path: Path, cai_tiny_model: Path) -> None:
    cls, test = LABELERS[fault]
    must_fail(LabelerConformance, test, lambda self, context, **changed: cls(context), tmp_path, cai_tiny_model)


def test_the_table_of_verdicts_is_long_and_has_all_sorts() -> None:
    assert len({text for text, _ in VERDICTS}) == len(VERDICTS) >= 40
    assert {meaning for _, meaning in VERDICTS} == {"read", "may", "none"}


def changed_class(kind: str, name: str, methods: dict[str, Any]) -> Callable[..., Any]:
    """A factory of the example's class with other methods."""
    there = example(kind)
    base = getattr(there, name)
    cls = type(name, (base,), methods)
    (component,) = getattr(there, KINDS[kind].hook)()
    takes_context = "context" in inspect.signature(base.__init__).parameters

    def make(self: Conformance, context: TestContext, **changed: Any) -> Any:
        options = component.options(**{**self.options, **changed})
        return cls(options, context) if takes_context else cls(options)

    return make


def _forgets(self: Any, path: Path) -> None:
    self.weights = {}


def _copied(self: Any, policy: Path, *_: Any, **__: Any) -> TrainResult:
    shutil.copytree(policy, _[-1])
    return TrainResult({}, [{"step": 1.0, "reward": 0.0, "loss": 1.0}, {"step": 2.0, "reward": 0.0, "loss": 1.0}])


def _always_moves(self: Any, *given: Any) -> Any:
    self.options = self.options.model_copy(update={"learning_rate": 0.1})
    return type(self).__mro__[1].train(self, *given)


def _starts_again(self: Any, *given: Any) -> Any:
    self.context.seed += random.SystemRandom().randrange(10**6)
    return type(self).__mro__[1].train(self, *given)


def _zero_for_failed(self: Any, model: str, rows: Sequence[Any]) -> Any:
    base = type(self).__mro__[1]
    return base._rate(self, model, [replace(r, failure=None, values={"asks": 0.0}) if r.failure else r for r in rows])


def _without_failed(self: Any, model: str, rows: Sequence[Any]) -> Any:
    base = type(self).__mro__[1]
    return base._rate(self, model, [row for row in rows if row.failure is None])


def _zero_without_rows(self: Any, model: str, rows: Sequence[Any]) -> Any:
    found = type(self).__mro__[1]._rate(self, model, rows)
    return found if found.n else replace(found, value=0.0, low=0.0, high=0.0)


def _raises_on_long(self: Any, requests: Sequence[GenerateRequest]) -> Iterator[Completion]:
    for completion in type(self).__mro__[1].generate(self, requests):
        if completion.failure:
            raise RuntimeError("too long")
        yield completion


def _ignores_stop(self: Any, requests: Sequence[GenerateRequest]) -> Iterator[Completion]:
    free = [replace(request, input=replace(request.input, stop=())) for request in requests]
    yield from type(self).__mro__[1].generate(self, free)


def _at_random(self: Any, principles: Sequence[Any], **_: Any) -> tuple[Any, ...]:
    return (random.choice(principles),)


def _formats(self: Any, prompt: Any, response: str, principle: Any) -> ModelInput:
    text = (principle.critique + " " + response + " " + prompt[-1].content).format(response="x")
    return ModelInput(messages=(Message("user", text),))


def _with_the_time(self: Any, results: Any, out: Path) -> Sequence[Path]:
    (path,) = type(self).__mro__[1].write(self, results, out)
    path.write_text(path.read_text() + str(random.SystemRandom().random()))
    return [path]


def _raw(self: Any, results: Any, out: Path) -> Sequence[Path]:
    path = out / "report.html"
    path.write_text(f"<p>{results['title']}</p>{json.dumps(results['findings'], ensure_ascii=False)}")
    return [path]


def _one_file_more(self: Any, results: Any, out: Path) -> Sequence[Path]:
    (out / "debug.txt").write_text("x")
    return list(type(self).__mro__[1].write(self, results, out))


def _new_ids(self: Any) -> Sequence[Any]:
    return [replace(p, id=f"{random.SystemRandom().random()}") for p in type(self).__mro__[1].load(self)]


def _both_splits(self: Any) -> Sequence[Any]:
    found = list(type(self).__mro__[1].load(self))
    return [*found, replace(found[0], id="again", split="heldout" if found[0].split == "train" else "train")]


CLASSES = {
    "backend": "Parrot",
    "prompts": "Topics",
    "principle_sampler": "Tagged",
    "critique_template": "Terse",
    "trainer": "Plain",
    "reward_model": "Words",
    "rl_algorithm": "Reinforce",
    "evaluator": "Questions",
    "reporter": "Lines",
}
SCORE = example("reward_model").Words.score

FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "learns nothing": ("reward_model", {"_score": lambda *_: 0.0}, "test_scores_rise_with_the_label"),
    "likes the worse one": (
        "reward_model",
        {"score": lambda self, answers: [-score for score in SCORE(self, answers)]},
        "test_scores_rise_with_the_label",
    ),
    "forgets": ("reward_model", {"load": _forgets}, "test_loaded_it_scores_as_it_did"),
    "scores in another order": (
        "reward_model",
        {"score": lambda self, answers: SCORE(self, answers)[::-1]},
        "test_one_finite_score_per_answer_in_order",
    ),
    "does not train": ("rl_algorithm", {"train": _copied}, "test_it_raises_a_scripted_reward"),
    "moves at learning rate zero": (
        "rl_algorithm",
        {"train": _always_moves},
        "test_learning_rate_zero_changes_nothing",
    ),
    "starts again from elsewhere": (
        "rl_algorithm",
        {"train": _starts_again},
        "test_a_restart_ends_where_an_unbroken_run_ends",
    ),
    "does not learn": ("trainer", {"train": _copied}, "test_it_learns_and_writes_a_whole_model"),
    "moves at rate zero": ("trainer", {"train": _always_moves}, "test_learning_rate_zero_changes_nothing"),
    "counts failures as zero": ("evaluator", {"_rate": _zero_for_failed}, "test_what_could_not_be_scored_is_counted"),
    "drops failures": ("evaluator", {"_rate": _without_failed}, "test_what_could_not_be_scored_is_counted"),
    "makes zero of nothing": ("evaluator", {"_rate": _zero_without_rows}, "test_nothing_scored_is_no_number"),
    "falls over a long input": (
        "backend",
        {"generate": _raises_on_long},
        "test_too_long_is_a_failure_of_that_request",
    ),
    "ignores stop strings": ("backend", {"generate": _ignores_stop}, "test_stop_strings_end_the_text"),
    "has dice of its own": (
        "principle_sampler",
        {"sample": _at_random},
        "test_all_chance_comes_from_the_units_generator",
    ),
    "formats what models wrote": (
        "critique_template",
        {"critique": _formats},
        "test_text_of_models_and_users_is_never_a_template",
    ),
    "takes nothing for text": ("critique_template", {"_read": lambda self, text: text.strip()}, "test_reading_back"),
    "writes a random number": ("reporter", {"write": _with_the_time}, "test_same_results_same_bytes"),
    "writes markup of models": ("reporter", {"write": _raw}, "test_hostile_text_stays_text"),
    "hides a file": ("reporter", {"write": _one_file_more}, "test_it_returns_the_files_that_it_wrote"),
    "has other ids each time": ("prompts", {"load": _new_ids}, "test_loading_again_gives_the_same"),
    "has a prompt in both splits": ("prompts", {"load": _both_splits}, "test_no_prompt_is_in_both_splits"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_component_is_caught(fault: str, tmp_path: Path, cai_tiny_model: Path) -> None:
    kind, methods, test = FAULTS[fault]
    make = changed_class(kind, CLASSES[kind], methods)
    must_fail(CONFORMANCE[kind], test, make, tmp_path, cai_tiny_model, options=LEARNS.get(kind, {}))


def test_every_kind_has_a_contract_and_a_fault_that_it_catches() -> None:
    assert list(CONFORMANCE) == list(KINDS)
    assert {kind for kind, *_ in FAULTS.values()} | {"labeler"} == set(KINDS)
    for kind, cls in CONFORMANCE.items():
        assert cls.kind == kind
        assert cls.__name__ == f"{KINDS[kind].protocol.__name__}Conformance"


# deviations ------------------------------------------------------------------------------------------------------


def subclass(**more: Any) -> type:
    return type("TestIt", (LabelerConformance,), {"__module__": __name__, **more})


def test_a_test_of_the_contract_cannot_be_replaced() -> None:
    with pytest.raises(TypeError, match="use deviations"):
        subclass(test_one_label_per_comparison=lambda self: None)


@pytest.mark.parametrize("reason", ["", "  ", None])
def test_a_deviation_needs_a_reason(reason: Any) -> None:
    with pytest.raises(TypeError, match="needs a reason"):
        subclass(deviations={"test_one_label_per_comparison": reason})


def test_a_deviation_names_a_test() -> None:
    with pytest.raises(TypeError, match="no test of the contract"):
        subclass(deviations={"test_nothing": "because"})


def test_a_deviation_shows_as_an_expected_failure_and_one_that_is_mended_fails(tmp_path: Path) -> None:
    """In a pytest run of its own: a justified deviation is xfailed with its reason, an unjustified one fails."""
    (tmp_path / "test_mine.py").write_text(
        "from cai_core.testing import PrincipleSamplerConformance\n"
        "class TestNeeded(PrincipleSamplerConformance):\n"
        "    deviations = {'test_a_single_principle_is_drawn': 'draws nothing on Mondays'}\n"
        "    def make(self, context):\n"
        "        import types\n"
        "        return types.SimpleNamespace(sample=lambda principles, **_: tuple(principles[1:2]))\n"
        "class TestMended(PrincipleSamplerConformance):\n"
        "    component_id = 'cai-core/uniform'\n"
        "    deviations = {'test_a_single_principle_is_drawn': 'no longer true'}\n"
    )
    command = [sys.executable, "-m", "pytest", "-rxf", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "1 failed" in done.stdout
    assert "1 xfailed" in done.stdout
    assert re.search(r"XFAIL .*TestNeeded::test_a_single_principle_is_drawn - draws nothing on Mondays", done.stdout)
    assert re.search(r"FAILED .*TestMended::test_a_single_principle_is_drawn", done.stdout)
    assert "[XPASS(strict)] no longer true" in done.stdout
