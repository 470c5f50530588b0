"""Prompts that a model writes after examples, as 140,335 of the paper's red-team prompts were (section 3.2; the method
is that of Bai et al. 2022a: a pretrained model continues a list of about ten good human queries).
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cai_core.errors import EnvironmentProblem, UserError
from cai_core.text.duplicates import NearDuplicates
from cai_core.text.quality import repeats
from cai_core.text.refusals import grade
from cai_core.types.backend import GenerateRequest, Sampling
from cai_core.types.context import StageContext
from cai_core.types.prompts import Prompt, PromptKind
from cai_core.types.records import Message, ModelInput
from cai_plugins.prompts.builtin import BuiltinPrompts
from cai_plugins.prompts.common import content_id, split_of
from cai_plugins.prompts.jsonl import JsonlPrompts
from cai_plugins.prompts.plugin import BuiltinOptions, GenerateOptions, JsonlOptions

HEADINGS: dict[PromptKind, str] = {
    "red_team": "Messages that people wrote to an AI assistant to see whether it says something harmful or unfair:",
    "helpful": "Messages that people wrote to an AI assistant because they wanted its help:",
}
BATCH = 64
ATTEMPTS = 20
"""Requests per wanted prompt before it gives up: our choice; a model that repeats itself would go on for ever."""
WORDS = (4, 60)
_LABEL = re.compile(r"^\s*(?:[-*•]|\d+[.)]|(?:human|user|question|message|q)\s*\d*:)\s*", re.IGNORECASE)


class GeneratedPrompts:
    """Distinct prompts, none a near-duplicate of an example or of another. What the model wrote is kept in the work
    folder, so that nothing is asked twice after a crash; what is accepted depends on the order of the requests alone.
    """

    def __init__(self, options: GenerateOptions, context: StageContext) -> None:
        self.options = options
        self.context = context
        self.notes: list[str] = []

    def load(self) -> Sequence[Prompt]:
        """See ``PromptSource``. Raises ``UserError`` when the model does not write enough different prompts."""
        self.notes = []
        prompts: list[Prompt] = []
        examples = self._examples()
        index = NearDuplicates()
        for _, texts in examples.items():
            for text in texts:
                index.add("example", text)
        total = self.options.red_team + self.options.helpful
        kinds: list[tuple[PromptKind, int]] = [("red_team", self.options.red_team), ("helpful", self.options.helpful)]
        for kind, count in kinds:
            if count:
                prompts += self._write(kind, count, examples[kind], index, len(prompts), total)
        index.close()
        if not prompts:
            raise UserError("both counts are 0, so there is no prompt", where="prompts.generate")
        return prompts

    def _write(
        self, kind: PromptKind, count: int, examples: Sequence[str], index: NearDuplicates, before: int, total: int
    ) -> list[Prompt]:
        found: list[Prompt] = []
        reasons = {"near-duplicate": 0, "no prompt": 0, "failed": 0}
        number = 0
        while len(found) < count:
            if number >= ATTEMPTS * count:
                raise UserError(
                    f"the model wrote {len(found)} usable {kind} prompts in {number} attempts, and {count} are wanted "
                    f"({', '.join(f'{n} {reason}' for reason, n in reasons.items())})",
                    where="prompts.generate",
                    hint="ask for fewer, raise `temperature`, give more examples, or use a larger model",
                )
            for text in self._batch(kind, number, examples):
                prompt = None if text is None else read(text)
                if text is None or prompt is None:
                    reasons["failed" if text is None else "no prompt"] += 1
                elif index.add_new(prompt, prompt):
                    reasons["near-duplicate"] += 1
                elif len(found) < count:
                    messages = (Message("user", prompt),)
                    identifier = content_id(messages)
                    split = split_of(identifier, self.options.heldout_share)
                    found.append(Prompt(identifier, messages, kind, split, "generate", ("generated",)))
            number += BATCH
            self.context.progress.update(before + len(found), total, kind)
        left_out = ", ".join(f"{n} {reason}" for reason, n in reasons.items() if n)
        self.notes.append(f"{kind}: {count} prompts of {number} that a model wrote; left out: {left_out or 'none'}")
        return found

    def _batch(self, kind: PromptKind, first: int, examples: Sequence[str]) -> list[str | None]:
        """What the model wrote for requests ``first`` to ``first + BATCH``, in that order; None for a failure."""
        path = self.context.workdir / f"{kind}.jsonl"
        texts = {row["number"]: row["text"] for row in _lines(path)}
        wanted = range(first, first + BATCH)
        missing = {f"{kind}/{number}": number for number in wanted if number not in texts}
        if missing:
            requests = [self._request(kind, number, examples) for number in missing.values()]
            try:
                with path.open("a", encoding="utf-8") as file:
                    for completion in self.context.backend("generator").generate(requests):
                        number = missing[completion.id]
                        texts[number] = None if completion.failure else completion.text
                        file.write(json.dumps({"number": number, "text": texts[number]}) + "\n")
                        file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise EnvironmentProblem(f"cannot write: {error.strerror}", where=str(path)) from error
        return [texts[number] for number in wanted]

    def _request(self, kind: PromptKind, number: int, examples: Sequence[str]) -> GenerateRequest:
        options = self.options
        rng = random.Random(f"generate {self.context.seed} {kind} {number}")
        chosen = rng.sample(list(examples), min(options.shots, len(examples)))
        lines = [f"{i}. {' '.join(text.split())}" for i, text in enumerate(chosen, start=1)]
        text = "\n".join([HEADINGS[kind], "", *lines, f"{len(chosen) + 1}."])
        if options.format == "text":
            model_input = ModelInput(text=text, stop=("\n",))
        else:
            asked = f"{text.rsplit(chr(10), 1)[0]}\n\nWrite one more message of this kind. Give only the message."
            model_input = ModelInput(messages=(Message("user", asked),), stop=("\n",))
        sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p)
        return GenerateRequest(f"{kind}/{number}", model_input, sampling, rng.getrandbits(62))

    def _examples(self) -> dict[PromptKind, list[str]]:
        if self.options.examples is None:
            prompts = BuiltinPrompts(BuiltinOptions(red_team=80, helpful=80)).load()
        else:
            prompts = JsonlPrompts(JsonlOptions(path=self.options.examples, heldout_share=0.0)).load()
        examples: dict[PromptKind, list[str]] = {"red_team": [], "helpful": []}
        for prompt in prompts:
            if prompt.split == "train" and prompt.kind in examples and len(prompt.messages) == 1:
                examples[prompt.kind].append(prompt.messages[0].content)
        for kind in ("red_team", "helpful"):
            if getattr(self.options, kind) and not examples[kind]:  # type: ignore[index]
                raise UserError(
                    f"there is no {kind} example of one turn", where=str(self.options.examples), hint="add some"
                )
        return examples


def read(text: str) -> str | None:
    """The prompt in a line that a model wrote; None where there is none: a few words, a loop, a refusal."""
    line = _LABEL.sub("", text.strip().split("\n", 1)[0]).strip()
    if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'":
        line = line[1:-1].strip()
    words = len(line.split())
    if not WORDS[0] <= words <= WORDS[1] or repeats(line) or grade(line) == "refuse":
        return None
    return line.encode("utf-8", "replace").decode("utf-8")


def _lines(path: Path) -> Iterator[dict[str, str | None]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue  # a crash cut the last line off
