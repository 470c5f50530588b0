"""``multiple_choice``: which option does the model choose? And ``honesty``: the same on TruthfulQA.

Keeps from the paper (section 2, Figures 4, 11 and 12): options are scored by log-probability, summed over an option's
tokens; with chain of thought after a reasoning sampled at T = 1, and the mean probability of several. Adds: both orders
of the options, worked examples with every position equally often, leaked items left out, intervals over conversations.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

from cai_core.errors import UserError
from cai_core.text.judging import REASONINGS, over_options, unscored
from cai_core.types.backend import GenerateRequest, Sampling, ScoreRequest
from cai_core.types.context import StageContext
from cai_core.types.evaluator import EvalInput, EvalRow, EvalUnit, Metric
from cai_core.types.records import Message, ModelInput, UnitFailure
from cai_plugins.evaluators.choices import Item, known_texts, leaks, plain, prompt_of
from cai_plugins.evaluators.measures import Direction, by_model, mean, rate
from cai_plugins.evaluators.plugin import HonestyOptions, MultipleChoiceOptions

START = "Let's think step by step:"
READ_OUT = "So the answer is:"
MEASURES = ("with_leaked", "file_order", "flip_rate", "p_correct", "mass")
Key = tuple[int, int]  # order, sample


class MultipleChoice:
    """An ``Evaluator`` of the models themselves."""

    def __init__(
        self,
        options: MultipleChoiceOptions | HonestyOptions,
        context: StageContext,
        items: Sequence[Item],
        examples: Sequence[Item],
        *,
        base: str,
        what: str,
    ) -> None:
        self.options = options
        self.context = context
        self.base = f"{base}.{options.title}" if options.title else base
        self.what = f"{what} ({options.title})" if options.title else what
        shots = options.shots
        if options.cot:
            examples = [item for item in examples if item.get("reasoning")]
        if shots and options.examples is None:  # those with the lowest hash, so that a larger file keeps most of them
            usable = [item for item in items if item.get("reasoning") or not options.cot]
            examples = sorted(usable, key=lambda item: sha256(f"shot/{item['id']}".encode()).digest())[:shots]
        self.examples = list(examples[:shots])
        if shots > len(self.examples):
            lacking = 'with "reasoning": "..." in their line ' if options.cot else ""
            message = f"{shots} worked examples {lacking}are asked for and there are {len(self.examples)}"
            raise UserError(message, where="shots", hint="ask for fewer, or give a file with more as `examples`")
        content = json.dumps(self.examples, sort_keys=True)
        self.shown = {"examples": sha256(content.encode()).hexdigest()[:16]} if shots else {}
        shown = {item["id"] for item in self.examples} if options.examples is None else set()
        self.items = [item for item in items if item["id"] not in shown]
        if not self.items:
            raise UserError("all items are worked examples", where="shots", hint="ask for fewer")
        if options.cot and (plain := next((i for i in self.items if not i["bodies"]), None)):
            raise UserError(
                f"reasoning needs options behind letters, and the item {plain['id']} has none",
                where="cot",
                hint='end its prompt with "\\n (A) ...\\n (B) ...\\n\\nThe answer is:"; its options are " (A)", " (B)"',
            )
        # What the model has seen: the examples, and the file that the user names.
        self.known = [turn for item in self.examples for turn in item["queries"]]
        self.known += known_texts(options.leaked) if options.leaked else []
        self.training: frozenset[str] = frozenset()

    def units(self, given: EvalInput) -> Sequence[EvalUnit]:
        """Every item for every model. The payload says which worked examples stand before it."""
        self.training = frozenset(plain(prompt.messages[-1].content) for prompt in given.training)
        return [EvalUnit(item["id"], model, {**item, **self.shown}) for model in given.models for item in self.items]

    def run(self, units: Sequence[EvalUnit]) -> Iterator[EvalRow]:
        """``p``: probability of each option of the file, in its order (after both orders were averaged); ``p_correct``
        of all correct ones together; ``right``, ``right_first`` (in the file's order alone): 1, 0 or a part where the
        best are equal; ``flipped``; ``mass``: probability on the letters before it was made to sum to 1.
        With reasoning, rows come in groups of about ``REASONINGS``."""
        size = max(1, REASONINGS // (2 * self.options.samples)) if self.options.cot else len(units)
        for start in range(0, len(units), size):
            yield from self._group(units[start : start + size])

    def _group(self, units: Sequence[EvalUnit]) -> Iterator[EvalRow]:
        backend = self.context.backend(units[0].model)
        by_id = {str(number): unit for number, unit in enumerate(units)}
        wanted = {name: self._keys(unit.payload) for name, unit in by_id.items()}
        broken: dict[str, UnitFailure] = {}
        reasons: dict[str, str] = {}
        if self.options.cot:
            sampling = Sampling(self.options.max_new_tokens, self.options.temperature)
            asked = [
                GenerateRequest(f"{n}/{o}/{s}", self._reasoning(unit.payload, o), sampling, self._seed(unit, o, s))
                for n, unit in by_id.items()
                for o, s in wanted[n]
            ]
            for done in backend.generate(asked):
                reasons[done.id] = done.text
                if done.failure:
                    broken.setdefault(done.id.split("/")[0], done.failure)
        requests = [
            ScoreRequest(name, self._asked(unit.payload, o, reasons.get(name)), self._said(unit.payload))
            for n, unit in by_id.items()
            if n not in broken
            for o, s in wanted[n]
            for name in [f"{n}/{o}/{s}"]
        ]
        found: dict[str, dict[Key, tuple[float, ...]]] = defaultdict(dict)
        for scores in backend.score(requests) if requests else ():
            name, order, sample = scores.id.split("/")
            if failure := unscored(scores):
                broken.setdefault(name, failure)
            found[name][int(order), int(sample)] = scores.logprobs
        for name, unit in by_id.items():
            if name in broken:
                yield EvalRow(unit.id, unit.model, {}, broken[name])
                continue
            values = _values(unit.payload, found[name], letters=bool(unit.payload["bodies"]))
            if self.options.cot:
                values["reasoning"] = reasons[f"{name}/0/0"][:2000]
                if self.options.clamp and len(values["p"]) == 2:
                    low, high = self.options.clamp
                    values["p_correct"] = min(max(values["p_correct"], low), high)
            yield EvalRow(unit.id, unit.model, values)

    def summarise(self, rows: Sequence[EvalRow]) -> Sequence[Metric]:
        """Accuracy without leaked items, and with them where there are any; by category; flips, mass, P(correct). Only
        accuracy and P(correct) are compared over items, so that the correction for many comparisons stays fair."""
        items = {item["id"]: item for item in self.items}
        leaked = {
            i
            for i, item in items.items()
            if not self.training.isdisjoint(item["queries"]) or any(leaks(turn, self.known) for turn in item["queries"])
        }
        cluster = {i: item["cluster"] for i, item in items.items()}
        chance = sum(_chance(item) for item in self.items) / len(self.items)
        how = f"{self.what}, {self.options.shots} worked examples" + (", chain of thought" if self.options.cot else "")
        note = f"{how}; chance is {100 * chance:.1f} %."
        if leaked:
            note += f" {len(leaked)} items that stand in the examples, the training prompts or the named file left out."
        metrics: list[Metric] = []
        for model, everything in by_model(rows).items():
            mine = [row for row in everything if row.id not in leaked]

            def share(name: str, label: str, some: Sequence[EvalRow], key: str, at: str = model, **more: Any) -> None:
                metrics.append(rate(name, label, at, some, key, cluster=cluster, **{"direction": "none", **more}))

            share(self.base, f"{self.what}: right", mine, "right", direction="higher", note=note)
            if leaked:
                text = f"{how}; all {len(items)} items."
                label = f"{self.what}: right, leaked items too"
                share(f"{self.base}.with_leaked", label, everything, "right", note=text)
            both = [row for row in mine if row.failure or "right_first" in row.values]
            if any(row.failure is None for row in both):
                share(f"{self.base}.file_order", f"{self.what}: right in the file's order", both, "right_first")
                share(f"{self.base}.flip_rate", f"{self.what}: choice changes with the order", both, "flipped")
            ways: tuple[tuple[str, str, Direction], ...] = (
                ("p_correct", "probability of the correct options", "higher"),
                ("mass", "probability on the letters", "none"),
            )
            for name, label, way in ways:
                some = [row for row in mine if row.failure or name in row.values]
                if any(row.failure is None for row in some):
                    label = f"{self.what}: {label}"
                    found = mean(
                        f"{self.base}.{name}", label, model, some, name, unit="rate", direction=way, cluster=cluster
                    )
                    metrics.append(found)
            categories = sorted({item["category"] for item in self.items})
            for category in categories if len(categories) > 1 else ():
                some = [row for row in mine if items[row.id]["category"] == category]
                if some:
                    label = f"{self.what}: right, {category}"
                    share(f"{self.base}.{_part(category)}", label, some, "right", direction="higher", note=note)
        compared = (self.base, f"{self.base}.p_correct")
        return [m if m.id in compared else replace(m, per_item={}, cluster={}) for m in metrics]

    # what is asked -----------------------------------------------------------------------------------------------

    def _keys(self, item: Mapping[str, Any]) -> list[Key]:
        orders = (0, 1) if self.options.both_orders and item["bodies"] else (0,)
        samples = self.options.samples if self.options.cot else 1
        return [(order, sample) for order in orders for sample in range(samples)]

    def _asked(self, item: Mapping[str, Any], order: int, reasoning: str | None) -> ModelInput:
        if reasoning is not None:
            before = self._reasoning(item, order)
            if before.messages:
                return ModelInput(messages=before.messages, prefill=f"{START}{reasoning.rstrip()}\n\n{READ_OUT}")
            return ModelInput(text=f"{before.text}{reasoning.rstrip()}\n\nHuman:\n{READ_OUT}")
        prompt = prompt_of(item, _order(item, order))
        examples = [_worked(example, number) for number, example in enumerate(self.examples)]
        if self.options.format == "raw":
            return ModelInput(text="".join(f"{text}{answer}\n\n" for text, answer in examples) + prompt)
        turns: list[Message] = []
        for text, answer in examples:
            question, prefill = _turn(text)
            turns += [Message("user", question), Message("assistant", (prefill + answer).strip())]
        question, prefill = _turn(prompt)
        return ModelInput(messages=(*turns, Message("user", question)), prefill=prefill)

    def _reasoning(self, item: Mapping[str, Any], order: int) -> ModelInput:
        question = _question(item, _order(item, order))
        # Not turned round as examples without reasoning are: the reasoning may name the letters.
        worked = [
            (_question(example, None), f" {example['reasoning'].strip()}", example["options"][example["correct"][0]])
            for example in self.examples
        ]
        if self.options.format == "chat":
            turns: list[Message] = []
            for asked, reasoning, answer in worked:
                text = f"{START}{reasoning}\n\n{READ_OUT}{answer}"
                turns += [Message("user", asked), Message("assistant", text)]
            return ModelInput(messages=(*turns, Message("user", question)), prefill=START, stop=(READ_OUT,))
        # The inner conversation's roles are H and A, as in the paper's examples, so that they are not the outer turns.
        before = "".join(
            f"\n\nHuman: {_inner(asked)}\n\nAssistant: {START}{reasoning}\n\nHuman:\n{READ_OUT}{answer}"
            for asked, reasoning, answer in worked
        )
        text = f"{before}\n\nHuman: {_inner(question)}\n\nAssistant: {START}"
        return ModelInput(text=text, stop=("\n\nHuman:", READ_OUT))

    def _said(self, item: Mapping[str, Any]) -> tuple[str, ...]:
        """The options; a chat turn that nothing begins does not begin with a space."""
        bare = self.options.format == "chat" and not item["bodies"] and not _turn(str(item["head"]))[1]
        return tuple(option.lstrip() if bare else option for option in item["options"])

    def _seed(self, unit: EvalUnit, order: int, sample: int) -> int:
        text = f"cot/{self.context.seed}/{unit.id}/{order}/{sample}"
        return int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 1


def _question(item: Mapping[str, Any], order: Sequence[int] | None) -> str:
    """What is reasoned about: the prompt without the line that asks for the letter at once."""
    return prompt_of(item, order).removesuffix(str(item["tail"])).strip()


def _inner(question: str) -> str:
    return question.replace("\n\nHuman:", "\n\nH:").replace("\n\nAssistant:", "\n\nA:")


def _part(category: str) -> str:
    """A category in the name of a metric, where a user's may be called as one of our measures is."""
    return f"category.{category}" if category in MEASURES or category.startswith("category.") else category


def _order(item: Mapping[str, Any], order: int) -> list[int] | None:
    """The places of the bodies: as in the file, or reversed."""
    return list(range(len(item["bodies"])))[::-1] if order else None


def _worked(item: Mapping[str, Any], number: int) -> tuple[str, str]:
    """An example's prompt and its first correct option. Where options have letters they are turned so that the correct
    one stands at place ``number`` modulo their number: the paper's own reasoning examples have 4 B and 2 A."""
    correct = item["correct"][0]
    if not item["bodies"]:
        return str(item["head"]), str(item["options"][correct])
    count = len(item["bodies"])
    place = number % count
    order = [(correct - place + n) % count for n in range(count)]
    return prompt_of(item, order), str(item["options"][place])


def _turn(prompt: str) -> tuple[str, str]:
    """A prompt as the user's turn and the beginning of the answer: its last line where that ends with a colon. The
    form "Q: ...\\nA:" is the question alone."""
    head, _, last = prompt.rstrip().rpartition("\n")
    if last == "A:" and head.startswith("Q: "):
        return head.removeprefix("Q: "), ""
    if head.strip() and last.endswith(":"):
        return head.strip(), last
    return prompt.strip(), ""


def _values(item: Mapping[str, Any], scored: Mapping[Key, Sequence[float]], *, letters: bool) -> dict[str, Any]:
    count = len(item["options"])
    by_order: dict[int, list[list[float]]] = defaultdict(list)
    masses = []
    for (order, _), logprobs in sorted(scored.items()):
        probabilities, mass = over_options(logprobs)
        by_order[order].append(probabilities[::-1] if order else probabilities)
        masses.append(mass)
    # Probabilities and not their logarithms are averaged (section 2), over reasonings and then over orders.
    means = {o: [math.fsum(p[i] for p in some) / len(some) for i in range(count)] for o, some in by_order.items()}
    p = [math.fsum(some[i] for some in means.values()) / len(means) for i in range(count)]
    values: dict[str, Any] = {
        "p": p,
        "p_correct": min(1.0, math.fsum(p[i] for i in item["correct"])),
        "right": _right(p, item),
    }
    if letters:
        values["mass"] = min(1.0, math.fsum(masses) / len(masses))
    if len(means) == 2:
        values["right_first"] = _right(means[0], item)
        values["flipped"] = float(_best(means[0], item).isdisjoint(_best(means[1], item)))
    return values


def _best(p: Sequence[float], item: Mapping[str, Any]) -> set[int]:
    top = max(p[i] for i in item["among"])
    return {i for i in item["among"] if p[i] >= top - 1e-12}


def _right(p: Sequence[float], item: Mapping[str, Any]) -> float:
    """Share of the most probable options that are correct: 1 or 0 unless some are equal."""
    best = _best(p, item)
    return len(best & set(item["correct"])) / len(best)


def _chance(item: Mapping[str, Any]) -> float:
    return len(set(item["among"]) & set(item["correct"])) / len(item["among"])
