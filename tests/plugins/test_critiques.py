"""Critique templates: what the model reads, and what is read back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cai_core.errors import UnitError
from cai_core.testing.context import CONSTITUTION
from cai_core.types.principles import Principle
from cai_core.types.records import Message
from cai_plugins.critiques.chat import ChatTemplate
from cai_plugins.critiques.direct import DirectChatTemplate, DirectPaperTemplate
from cai_plugins.critiques.paper import PaperTemplate
from cai_plugins.critiques.plugin import ChatOptions, DirectOptions, PaperOptions
from cai_plugins.critiques.reading import clean, clean_revision

PROMPT = (Message("user", "How do I {annoy} him?"),)
PRINCIPLE = Principle(id="p", critique="What is {harmful} here?", revision="Remove it.", comparison="Which is better?")


def test_paper_text_is_the_published_form() -> None:
    template = PaperTemplate(PaperOptions(shots=0), CONSTITUTION)
    head = "\n\nHuman: How do I {annoy} him?\n\nAssistant: Shout."
    critique = template.critique(PROMPT, "Shout.", PRINCIPLE)
    assert critique.text == head + "\n\nCritiqueRequest: What is {harmful} here?\n\nCritique:"
    revision = template.revision(PROMPT, "Shout.", "It is loud.", PRINCIPLE)
    assert revision.text == critique.text + " It is loud.\n\nRevisionRequest: Remove it.\n\nRevision:"
    assert "\n\nHuman:" in revision.stop
    assert template.answer(PROMPT).text == "\n\nHuman: How do I {annoy} him?\n\nAssistant:"


def test_paper_examples_come_first_and_are_the_same_for_every_unit() -> None:
    template = PaperTemplate(PaperOptions(), CONSTITUTION)
    first = template.critique(PROMPT, "Shout.", PRINCIPLE).text
    other = template.critique((Message("user", "Other?"),), "No.", PRINCIPLE).text
    block = template.block
    assert block.count("\n\nRevision: ") == 5
    assert first.startswith(block)
    assert other.startswith(block)


def test_chat_round() -> None:
    template = ChatTemplate(ChatOptions(), CONSTITUTION)
    critique = template.critique(PROMPT, "Shout.", PRINCIPLE)
    assert critique.messages[-1].role == "user"
    assert "Human: How do I {annoy} him?\n\nAssistant: Shout." in critique.messages[-1].content
    read = template.read_critique(" it is loud. And it is", cut=True)
    assert read == "The problem with the response is that it is loud."
    revision = template.revision(PROMPT, "Shout.", read, PRINCIPLE)
    assert [m.role for m in revision.messages] == ["user", "assistant", "user"]
    assert revision.messages[-1].content.startswith(read + " Remove it.")


def test_chat_examples_are_whole_rounds() -> None:
    template = ChatTemplate(ChatOptions(shots=2), CONSTITUTION)
    roles = [m.role for m in template.revision(PROMPT, "Shout.", "Loud.", PRINCIPLE).messages]
    assert roles == ["user", "assistant", "user", "assistant"] * 2 + ["user", "assistant", "user"]
    assert [m.role for m in template.critique(PROMPT, "Shout.", PRINCIPLE).messages] == ["user", "assistant"] * 2 + [
        "user"
    ]


def test_multi_turn_prompts_are_kept_whole() -> None:
    prompt = (Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "Insult me."))
    chat = ChatTemplate(ChatOptions(), CONSTITUTION).critique(prompt, "No.", PRINCIPLE).messages[-1].content
    assert "Human: Hi\n\nAssistant: Hello!\n\nHuman: Insult me.\n\nAssistant: No." in chat
    paper = PaperTemplate(PaperOptions(shots=0), CONSTITUTION).critique(prompt, "No.", PRINCIPLE).text
    assert paper.startswith("\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Insult me.\n\nAssistant: No.\n\nCritiqueR")


@pytest.mark.parametrize("kind", [DirectChatTemplate, DirectPaperTemplate])
def test_direct_never_shows_a_critique(kind: type[DirectChatTemplate | DirectPaperTemplate]) -> None:
    template = kind(DirectOptions(shots=3), CONSTITUTION)
    assert template.critiques is False
    asked = template.revision(PROMPT, "Shout.", "", PRINCIPLE)
    text = asked.text or " ".join(m.content for m in asked.messages)
    assert "Remove it." in text
    assert "Critique" not in text
    assert "The response helps the user threaten" not in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "…",
        "Human: more please",
        "<|im_start|>user\nMore please.",
        "<think>\nI should be kind, so I",
        "The response is too harsh.",
        "The problem with your response is noise.",
    ],
)
def test_what_is_no_revision_is_a_typed_failure(text: str) -> None:
    for template in (
        ChatTemplate(ChatOptions(), CONSTITUTION),
        PaperTemplate(PaperOptions(), CONSTITUTION),
        DirectChatTemplate(DirectOptions(), CONSTITUTION),
    ):
        with pytest.raises(UnitError) as caught:
            template.read_revision(text)
        assert caught.value.kind == "unparseable"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ('Sure, here is a revised version of the response:\n\n"Talk to him."', "Talk to him."),
        ("I'll make it kinder. Here's a rewritten version:\n\nTalk to him.", "Talk to him."),
        ("Boil it. Here are three more: tea, milk.", "Boil it. Here are three more: tea, milk."),
        (" Revision: Talk to him.\n\nHuman: thanks", "Talk to him."),
        ("**Revised response:** Talk to him.", "Talk to him."),
        ("### Revised response\n\nTalk to him.", "Talk to him."),
        ("Absolutely!\n\nRevised Response:\nTalk to him.", "Talk to him."),
        ("The assistant's revised response: Talk to him.", "Talk to him."),
        ("Certainly, here's my revised answer.\n\nTalk to him.", "Talk to him."),
        ("Okay, I will rewrite the response to be kinder.\n\nTalk to him.", "Talk to him."),
        ("Thank you for the hint. Here is the corrected response:\n\nTalk to him.", "Talk to him."),
        ("Sure, here it is:\n\nTalk to him.", "Talk to him."),
        ("Talk to him.\n\n**Explanation:** I removed the insult.", "Talk to him."),
        ("Talk to him. (Note: I removed the insult.)", "Talk to him."),
        ("Talk to him.\n\nI hope this revised response is better!", "Talk to him."),
        ("Talk to him.\n\n---\n\nThis revision is more polite.", "Talk to him."),
        ("Talk to him.\n\n### Instruction:\nSay more.", "Talk to him."),
        ("4.\n\nExplanation: two and two.", "4.\n\nExplanation: two and two."),
        ("I can see your version of it.\n\nTalk to him.", "I can see your version of it.\n\nTalk to him."),
        ("Talk to him.\n\nNew plan: write a letter.", "Talk to him.\n\nNew plan: write a letter."),
        ("<think>\nBe kind.\n</think>\n\nTalk to him.", "Talk to him."),
        ("I should be kind.\n</think>\nTalk to him.", "Talk to him."),
        ("Write <think> in HTML.", "Write <think> in HTML."),
        ("<|im_start|>assistant\nTalk to him.<|im_end|>", "Talk to him."),
        ("<|start_header_id|>assistant<|end_header_id|>\n\nTalk to him.<|eot_id|>", "Talk to him."),
        ("<s> [/INST] Talk to him.</s>", "Talk to him."),
        ("<start_of_turn>model\nTalk to him.<end_of_turn>", "Talk to him."),
        ("Talk to him.<｜end▁of▁sentence｜>", "Talk to him."),
        ("Here's a possible alternative to the response:\n\nTalk to him.", "Talk to him."),
        ("Here are alternatives to butter: oil, purée.", "Here are alternatives to butter: oil, purée."),
        ("A more suitable response would be: Talk to him.", "Talk to him."),
        ("My answer is:\nTalk to him.", "Talk to him."),
        ("The correct answer is: Talk to him.", "Talk to him."),
        ("The answer is no: do not jump.", "The answer is no: do not jump."),
        ("One alternative is soup.", "One alternative is soup."),
        ("Talk to him.<|im_end|>\n<|im_start|>user", "Talk to him."),
        ("Talk to him.\n\nNote: I removed the insult.", "Talk to him."),
        ("Here are three kinds of soup: tomato, pea and leek.", "Here are three kinds of soup: tomato, pea and leek."),
    ],
)
def test_labels_and_remarks_are_removed(text: str, clean: str) -> None:
    assert ChatTemplate(ChatOptions(), CONSTITUTION).read_revision(text) == clean


LIST = "Do this. Then choose:\n\n- Talk to him\n- Write to him"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Talk to him. I would", "Talk to him."),
        (LIST, LIST.removesuffix("\n- Write to him")),
        ("Do this.\n1. Talk to him.\n2.", "Do this.\n1. Talk to him."),
        ("Talk to him.", "Talk to him."),
        ("Talk to", "Talk to"),
    ],
)
def test_what_the_token_limit_cut_off_ends_where_a_whole_part_ends(text: str, kept: str) -> None:
    template = ChatTemplate(ChatOptions(), CONSTITUTION)
    assert template.read_revision(text, cut=True) == template.read_answer(text, cut=True) == kept
    assert ChatTemplate(ChatOptions(whole_sentences=False), CONSTITUTION).read_revision(text, cut=True) == text


@pytest.mark.parametrize("text", [LIST, "Good luck. You can do it :)", "Run this. See:\n```\ncai run\n```"])
def test_what_the_model_ended_itself_is_whole(text: str) -> None:
    for template in (ChatTemplate(ChatOptions(), CONSTITUTION), PaperTemplate(PaperOptions(), CONSTITUTION)):
        assert template.read_answer(text) == template.read_revision(text) == text


def test_a_thought_is_no_part_of_a_critique() -> None:
    read = ChatTemplate(ChatOptions(), CONSTITUTION).read_critique("<think>\nHm.\n</think>\n\nit is loud.")
    assert read == "The problem with the response is that it is loud."


@pytest.mark.parametrize(
    ("text", "critique"),
    [
        ("It is loud. Here is a revised version: Talk to him.", "It is loud."),
        ("It is loud.\n\nSure, here's a more polite response:\n\nTalk to him.", "It is loud."),
        ("Sure! Here is my critique of the response: it is loud.", "it is loud."),
        ("It is loud. Here is why: it shouts.", "It is loud. Here is why: it shouts."),
    ],
)
def test_a_critique_is_not_the_revision_that_comes_with_it(text: str, critique: str) -> None:
    assert PaperTemplate(PaperOptions(), CONSTITUTION).read_critique(text) == critique


def test_an_announcement_of_an_answer_is_no_answer() -> None:
    with pytest.raises(UnitError, match="no text"):
        ChatTemplate(ChatOptions(), CONSTITUTION).read_revision("The answer is:")


def test_an_empty_critique_is_a_failure_though_its_first_words_were_given() -> None:
    with pytest.raises(UnitError, match="empty"):
        ChatTemplate(ChatOptions(), CONSTITUTION).read_critique("  ")


@pytest.mark.parametrize("read", [clean, clean_revision])
@pytest.mark.parametrize(
    "text",
    [
        "a" + "\n" * 200_000 + "b",
        "a. " * 200_000,
        "\n1." * 200_000,
        "a\nExplanation: " + "b " * 200_000,
        "a (note " * 50_000,
    ],
    ids=["newlines", "sentences", "numbers", "explanation", "brackets"],
)
def test_a_long_text_is_read_in_one_pass(read: Callable[..., str], text: str) -> None:
    """With a search that begins anew at every place, each of these would take minutes, which is the limit of a test."""
    assert read("Well. " + text, unfinished=True)


def test_a_remark_on_the_wording_is_taken_off() -> None:
    text = (
        "Sure, I can help with that. Here's a different way to phrase it for a young reader:\nAsk Sam what he thinks."
    )
    assert clean_revision(text) == "Ask Sam what he thinks."
