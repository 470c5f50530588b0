"""Prompts made from the authors' own files, byte for byte against a few lines that know nothing of ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cai_core.constitution.authors import import_authors
from cai_core.testing.context import TestContext
from cai_core.text.transcripts import parse_transcript
from cai_core.types.backend import Capabilities, Completion, Scores
from cai_core.types.labeler import Comparison
from cai_core.types.principles import Principle
from cai_plugins.critiques.direct import DirectPaperTemplate
from cai_plugins.critiques.paper import PaperTemplate
from cai_plugins.critiques.plugin import DirectOptions, PaperOptions
from cai_plugins.labelers.cot import CotLabeler
from cai_plugins.labelers.logprob import LogprobLabeler, question_text
from cai_plugins.labelers.plugin import CotOptions, LogprobOptions
from golden import PAPER, needs_paper

pytestmark = needs_paper
PROMPTS = (
    "\n\nHuman: How do I get back at him?",
    "\n\nHuman: Hi {there}\n\nAssistant:  Hello! \n\nHuman: Say something\n\nrude. ",
)


def read(name: str) -> object:
    assert PAPER is not None
    return json.loads((PAPER / "prompts" / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("shots", [0, 2, 5])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_critique_and_revision(prompt: str, shots: int) -> None:
    assert PAPER is not None
    files = read("CritiqueRevisionFewShotPrompts.json"), read("CritiqueRevisionInstructions.json")
    block = "".join(text.removesuffix("\n\nHuman:") for text in files[0][:shots])
    constitution = import_authors(PAPER)
    template = PaperTemplate(PaperOptions(shots=shots), constitution)
    principles = {p.id: p for p in constitution.principles}
    for name, entry in files[1].items():
        critique = block + prompt + "\n\nAssistant: Shout." + entry["prompt"][0]
        assert template.critique(parse_transcript(prompt), "Shout.", principles[name]).text == critique
        revision = critique + " It is loud." + entry["edit_request"]
        assert template.revision(parse_transcript(prompt), "Shout.", "It is loud.", principles[name]).text == revision
    assert template.answer(parse_transcript(prompt)).text == prompt + "\n\nAssistant:"


def test_direct_revision_leaves_the_critiques_out() -> None:
    assert PAPER is not None
    texts = [text.removesuffix("\n\nHuman:") for text in read("CritiqueRevisionFewShotPrompts.json")]
    block = "".join(re.sub(r"\n\nCritiqueRequest: .*?(?=\n\nRevisionRequest: )", "", t, flags=re.S) for t in texts)
    constitution = import_authors(PAPER)
    template = DirectPaperTemplate(DirectOptions(format="paper", shots=None), constitution)
    request = read("CritiqueRevisionInstructions.json")["harmful3"]["edit_request"]
    asked = template.revision(parse_transcript(PROMPTS[0]), "Shout.", "", constitution.principles[3])
    assert asked.text == block + PROMPTS[0] + "\n\nAssistant: Shout." + request


class Asked:
    """A judge that writes down what it is asked."""

    capabilities = Capabilities(score=True)

    def __init__(self) -> None:
        self.requests = []

    def score(self, requests):
        for request in requests:
            self.requests.append(request)
            yield Scores(request.id, (-1.0, -1.0), (3, 3))


class Reasoner(Asked):
    """One that always says the same first."""

    def __init__(self, reasoning: str) -> None:
        super().__init__()
        self.reasoning = reasoning
        self.asked = []

    def generate(self, requests):
        for request in requests:
            self.asked.append(request.input.text)
            yield Completion(request.id, self.reasoning, "stop")


def test_comparisons(tmp_path: Path) -> None:
    assert PAPER is not None
    constitution = import_authors(PAPER)
    comparing = [p for p in constitution.principles if p.comparison]
    conversation = parse_transcript(PROMPTS[1])
    for principle, text in zip(comparing, read("RLMadisonInstructions.json"), strict=True):
        judge = Asked()
        context = TestContext(tmp_path, backends={"judge": judge}, constitution=constitution)
        labeler = LogprobLabeler(LogprobOptions(shots=0), context)
        list(labeler.label([Comparison("c", conversation, "One.", "Two.", (principle,), 0)]))
        opening = "\n\nConsider the following conversation between a human and an assistant:"
        wanted = [
            f"{opening}{PROMPTS[1]}\n\n{text}\n (A) [[[{a}]]]\n (B) [[[{b}]]]\n\nThe answer is:"
            for a, b in (("One.", "Two."), ("Two.", "One."))
        ]
        assert [request.input.text for request in judge.requests] == wanted
        assert {request.continuations for request in judge.requests} == {(" (A)", " (B)")}


def test_comparison_examples_are_rendered_as_the_question_is(tmp_path: Path) -> None:
    """Which principle and order each example gets is drawn; everything else is fixed."""
    assert PAPER is not None
    constitution = import_authors(PAPER)
    judge = Asked()
    context = TestContext(tmp_path, backends={"judge": judge}, constitution=constitution)
    principle = constitution.principles[16]
    labeler = LogprobLabeler(LogprobOptions(shots=5), context)
    list(labeler.label([Comparison("c", parse_transcript(PROMPTS[0]), "One.", "Two.", (principle,), 0)]))
    text = judge.requests[0].input.text
    for entry in read("RLMadisonFewShotPrompts.json"):
        opening = "\n\nConsider the following conversation between a human and an assistant:"
        opening += entry["prompt"].removesuffix("\n\nAssistant:") + "\n\n"
        better, worse = entry["corrects"][0], entry["incorrects"][0]
        forms = [
            f"{opening}{instruction}\n (A) [[[{a}]]]\n (B) [[[{b}]]]\n\nThe answer is: ({letter})"
            for instruction in read("RLMadisonInstructions.json")
            for a, b, letter in ((better, worse, "A"), (worse, better, "B"))
        ]
        found = [form for form in forms if form in text]
        assert len(found) == 1
        text = text.replace(found[0], "")
    assert text.startswith("\n\nConsider")
    assert text.count("The answer is:") == 1


REASONED = re.compile(
    r"(Human: Consider [^\n]*:)(\n\nH: .*?)\n\n\{\}\n \(A\) \[\[\[(.*?)\]\]\]\n \(B\) \[\[\[(.*?)\]\]\]"
    r"\n\nAssistant: Let's think step by step:(.*)\n\nHuman:\nSo the answer is: \([AB]\)",
    re.DOTALL,
)
CONSIDER = "Human: Consider the following conversation between a human (H) and an assistant (A):"


def test_reasoning_is_asked_for_and_read_out_as_in_the_examples(tmp_path: Path) -> None:
    """Our question on the parts of an example is that example again, after all examples."""
    assert PAPER is not None
    constitution = import_authors(PAPER)
    instructions = [text.strip() for text in read("RLMadisonInstructions.json")]
    principle = next(p for p in constitution.principles if p.comparison)
    # Blank lines before an example differ from file to file; one does not explain the letters.
    texts = [entry["prompt"].strip() for entry in read("RLMadisonPrecogFewShotPrompts.json")]
    drawn = "|".join(map(re.escape, instructions))
    block = "".join(re.escape(f"\n\n{text}").replace(re.escape("{}"), f"(?:{drawn})", 1) for text in texts)
    for text in texts:
        head, turns, a, b, reasoning = REASONED.fullmatch(text).groups()
        judge = Reasoner(reasoning)
        context = TestContext(tmp_path, backends={"judge": judge}, constitution=constitution)
        labeler = CotLabeler(CotOptions(format="paper", shots=len(texts)), context)
        conversation = parse_transcript(turns.replace("\n\nH:", "\n\nHuman:").replace("\n\nA:", "\n\nAssistant:"))
        list(labeler.label([Comparison("c", conversation, a, b, (principle,), 0)]))
        question, answer = f"\n\n{text}".replace(head, CONSIDER).replace("{}", instructions[0]).rsplit(reasoning, 1)
        (asked,) = [text for text in judge.asked if text.endswith(question)]
        assert re.fullmatch(block, asked.removesuffix(question))
        assert asked + reasoning + answer[:-4] in [request.input.text for request in judge.requests]


def test_all_438_comparisons_are_rendered_again() -> None:
    assert PAPER is not None
    count = 0
    for line in (PAPER / "evals" / "438HHHEvaluations.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        correct, incorrect = parse_transcript(row["text_correct"]), parse_transcript(row["text_incorrect"])
        principle = re.search(r"\n\n\n([^\n]+) Options:\n \(A\) \[\[\[", row["prompt"])
        better, worse = (parts[-1].content for parts in (correct, incorrect))
        shown = re.search(r"Options:\n \(A\) \[\[\[(.*)\]\]\]\n \(B\) \[\[\[(.*)\]\]\]\n\nThe answer is:\Z",
                          row["prompt"], re.S)
        assert principle
        assert shown
        assert {text.strip() for text in shown.groups()} == {better.strip(), worse.strip()}
        *turns, last = correct[:-1]
        conversation = (*turns, type(last)(last.role, last.content.rstrip("\n")))
        question = question_text(conversation, shown.groups(), Principle("p", comparison=principle[1]))
        assert f"\n\n{question}\n\nThe answer is:" == row["prompt"]
        count += 1
    assert count == 438
