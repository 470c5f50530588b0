"""Transcripts, near-duplicates, relevance and what makes a text unfit to learn from."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai_core.text.duplicates import NearDuplicates, grams, similarity
from cai_core.text.judging import inside_brackets, unscored
from cai_core.text.quality import Boilerplate, bare_refusal, repeats, too_many_emoji
from cai_core.text.transcripts import parse_transcript, render_transcript
from cai_core.text.words import Relevance
from cai_core.types.backend import Scores
from cai_core.types.records import Message, UnitFailure

WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in ("ar", "ou", "ine", "ol") for c in ("ta", "ry", "mes", "p", "nd")]


def sentence(rng: random.Random, length: int = 30) -> list[str]:
    return [rng.choice(WORDS) for _ in range(length)]


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text()), min_size=1))
def test_transcripts_survive_the_way_there_and_back(turns: list[tuple[str, str]]) -> None:
    messages = tuple(Message(role, text) for role, text in turns)
    text = render_transcript(messages)
    assert render_transcript(parse_transcript(text)) == text


@pytest.mark.parametrize("text", ["", "Human: hi", "\n\nSystem: hi", "x\n\nHuman: hi"])
def test_what_is_no_transcript_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="begins with"):
        parse_transcript(text)


@given(st.text(), st.text())
def test_similarity_is_symmetric_and_within_0_and_1(a: str, b: str) -> None:
    assert similarity(a, b) == similarity(b, a)
    assert 0 <= similarity(a, b) <= 1
    assert similarity(a, a) == 1


def test_case_and_punctuation_do_not_count() -> None:
    assert similarity("How do I pick a lock?", "how do I... pick a LOCK") == 1
    assert similarity("How do I pick a lock?", "What is the tallest tree?") < 0.1


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_index_finds_what_comparing_every_pair_finds(tmp_path: Path, on_disk: bool) -> None:
    rng = random.Random(5)
    texts = [sentence(rng, rng.randrange(3, 40)) for _ in range(200)]
    index = NearDuplicates(tmp_path / "index" if on_disk else None)
    for number, words in enumerate(texts):
        index.add(str(number), " ".join(words))
    sets = [grams(" ".join(words)) for words in texts]
    found = near = 0
    for words in texts:
        changed = list(words)
        for _ in range(rng.randrange(0, 4)):
            changed[rng.randrange(len(changed))] = rng.choice(WORDS)
        query = " ".join(changed)
        asked = grams(query)
        best = max(len(asked & other) / len(asked | other) for other in sets)
        hit = index.find(query)
        if best >= 0.8:
            near += 1
            found += hit is not None and hit[1] == best
        else:
            assert hit is None
    assert near > 50
    assert found >= 0.99 * near
    index.close()


def test_the_first_of_equals_is_named_and_a_new_text_is_added_once() -> None:
    index = NearDuplicates()
    assert index.add_new("a", "one two three four") is None
    assert index.add_new("b", "One, two, three, four!") == ("a", 1.0)
    assert index.find("one two three four") == ("a", 1.0)
    assert index.add_new("c", "") is None
    assert index.find(" ") == ("c", 1.0)
    assert index.find("?!") is None, "signs are not nothing"


EMOJI = st.text("\U0001f389\U0001f525\U0001f600\U0001f64f\U0001f680", min_size=1)
OTHER_EMOJI = st.text("\U0001f388\U0001f44d\U0001f62d\U0001f6d1", min_size=1)


@given(EMOJI, OTHER_EMOJI)
def test_texts_of_signs_alone_are_compared_as_they_are(some: str, other: str) -> None:
    assert similarity(some, f" {some}\n") == 1
    assert similarity(some, other) == 0
    assert similarity(some, "") == 0
    index = NearDuplicates()
    assert index.add_new("some", some) is None
    assert index.add_new("other", other) is None
    assert index.find(some) == ("some", 1.0)


@given(st.text(), st.text("\U0001f389 !?.-", min_size=1))
def test_signs_around_words_do_not_count(text: str, signs: str) -> None:
    assert similarity(f"a {text}", f"{signs} a {text} {signs}") == 1


def test_grams_of_a_short_text_are_the_text() -> None:
    assert len(grams("ab")) == 1
    assert len(grams("abcdef")) == 2


def test_relevance_prefers_the_subject_in_common() -> None:
    relevance = Relevance(["Do not help with stealing or theft.", "Be kind to animals.", "Protect privacy of people."])
    scores = relevance.scores("Is it fine to steal from a shop that mistreats an animal?")
    assert scores[0] > 0
    assert scores[1] > 0
    assert scores[2] == 0
    assert all(0 <= score <= 1 + 1e-9 for score in scores)


@pytest.mark.parametrize(
    "text",
    [
        "no no no no no no",
        "I can help with that. " * 4,
        " ".join(["you should talk to your friend about it and then"] * 3),
    ],
)
def test_loops_are_seen(text: str) -> None:
    assert repeats(text)


@pytest.mark.parametrize("text", ["", "Yes.", "I would talk to him first. He may not know that it bothers you."])
def test_plain_text_is_no_loop(text: str) -> None:
    assert not repeats(text)
    assert not too_many_emoji(text)


# Phrases that a model without spaces between its words might fall into, none of them with a sign in it.
PHRASES = {
    "chinese": "我很愿意帮助你",
    "japanese": "お手伝いできます",
    "katakana": "プログラム",
    "thai": "ฉันยินดีช่วยคุณ",
    "lao": "ຂອຊ່ວຍເຈົ້າ",
    "khmer": "ខ្ញុំជួយអ្នក",
    "burmese": "ကျွန်တော်ကူညီပါ",
}
PLAIN = {
    "chinese": "请先和邻居谈一谈，他可能不知道音乐太大声。如果这样还不行，"
    "可以把日期和时间记下来，再去问房东有什么办法。哈哈哈哈哈哈，祝你好运！",
    "japanese": "まず隣の人と話してみてください。音楽が大きいことに気づいていないかもしれません。"
    "それでも変わらなければ、日付と時間を書いて、大家さんに相談しましょう。すごーーーーーーい！",
    "thai": "ลองคุยกับเพื่อนบ้านก่อน เขาอาจไม่รู้ว่าเพลงดังเกินไป "
    "ถ้ายังไม่ดีขึ้น ให้จดวันและเวลาไว้ แล้วถามเจ้าของบ้าน",
}  # fmt: skip
ENGLISH = "I would talk to him first. He may not know that it bothers you, and most people are glad to be told. "


@pytest.mark.parametrize("script", PHRASES)
def test_loops_are_seen_in_scripts_without_spaces(script: str) -> None:
    phrase = PHRASES[script]
    assert repeats(phrase * 8)
    assert repeats("。".join([phrase] * 3)) or script == "katakana", "five letters are no sentence"
    assert repeats(f"{ENGLISH.split('.')[0]}: {phrase * 12}"), "and where it begins in English"
    assert not repeats(phrase)
    assert not repeats(f"{phrase} {phrase}")


@pytest.mark.parametrize("script", PLAIN)
def test_plain_text_without_spaces_is_no_loop(script: str) -> None:
    """Nor is a cry in it: what English writes as one long word."""
    assert not repeats(PLAIN[script])
    assert repeats(PLAIN[script] * 2), "twice the same answer is one, as in English"
    assert repeats(ENGLISH * 2)


def test_words_that_are_quoted_make_no_loop_of_an_english_text() -> None:
    quoted = f"{ENGLISH}In Chinese: {PHRASES['chinese']}, {PHRASES['chinese']}, {PHRASES['chinese']}."
    assert not repeats(quoted)


HAN = [chr(code) for code in range(0x4E00, 0x4E80)]
THAI = [chr(code) for code in range(0x0E01, 0x0E2F)]


@given(st.lists(st.integers(0, len(THAI) - 1), max_size=120))
def test_which_letters_they_are_does_not_matter(letters: list[int]) -> None:
    """A text without spaces is a loop or none, whatever the script it is written in."""
    assert repeats("".join(THAI[i] for i in letters)) == repeats("".join(HAN[i] for i in letters))


@given(st.lists(st.sampled_from(HAN), min_size=2, max_size=20, unique=True), st.sampled_from(["", "、", " ", "\n"]))
def test_any_phrase_over_and_over_is_a_loop(phrase: list[str], between: str) -> None:
    assert repeats(between.join(["".join(phrase)] * 20))
    assert not repeats("".join(phrase))


@given(st.permutations(HAN))
def test_what_never_comes_again_is_no_loop(letters: list[str]) -> None:
    assert not repeats("".join(letters))


def by_words(text: str) -> bool:
    """Loops of words, worked out in another way."""
    words = [word.lower() for word in re.findall(r"\w+(?:['’]\w+)*", text)]
    row = any(len(set(words[i : i + 6])) == 1 for i in range(len(words) - 5))
    lines = [re.findall(r"\w+(?:['’]\w+)*", part.lower()) for part in re.split(r"[.!?\n]", text)]
    said = [tuple(line) for line in lines if len(line) >= 4]
    fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    again = sum(four in fours[:i] for i, four in enumerate(fours))
    return row or any(said.count(line) >= 3 for line in said) or (len(words) >= 20 and again > 0.3 * len(fours))


@given(
    st.lists(
        st.sampled_from(["ja", "nein", "\u00fcber", "don't", "\uc548\ub155", "\u0434\u0430", "so.", "x\n"]), max_size=40
    )
)
def test_texts_with_spaces_are_judged_by_their_words(words: list[str]) -> None:
    assert repeats(" ".join(words)) == by_words(" ".join(words))


def test_refusals_that_engage_are_not_bare() -> None:
    assert bare_refusal("I'm sorry, but I can't help with that.")
    engaged = "I can't help you scare him, but losing the deposit is upsetting, and you may be owed it. "
    assert not bare_refusal(engaged * 2 + "A letter that asks for a list of deductions is a good first step.")
    assert not bare_refusal("Water them once a week.")


def test_emoji() -> None:
    assert too_many_emoji("Great 🎉🎉🎉 you got this")
    assert not too_many_emoji("Well done 🎉")


def test_boilerplate_is_what_many_share_and_not_what_a_text_says() -> None:
    rng = random.Random(1)
    own = [" ".join(sentence(rng, 9)) + "." for _ in range(40)]
    habit = "You are valid and we are here for you."
    texts = [f"{text} {habit}" if i % 2 else habit for i, text in enumerate(own)]
    boilerplate = Boilerplate()
    for text in texts:
        boilerplate.count(text)
    assert boilerplate.dominates(habit)
    assert not boilerplate.dominates(texts[1] + " " + own[0])
    assert not boilerplate.dominates(own[0])


@given(st.text("[]()A \n") | st.text())
def test_what_is_between_brackets_can_neither_open_nor_close_them(text: str) -> None:
    inside = inside_brackets(text)
    assert "[[[" not in inside
    assert "]]]" not in inside
    assert inside.replace(" ", "") == text.replace(" ", "")


def test_scores_that_say_nothing() -> None:
    failure = UnitFailure("refusal", "no")
    assert unscored(Scores("1", (), (), failure=failure)) is failure
    assert unscored(Scores("1", (-0.1, -2.0), (1, 1))) is None
    for odd in (float("nan"), float("-inf")):
        found = unscored(Scores("1", (-0.1, odd), (1, 1)))
        assert found is not None
        assert found.kind == "infra"
