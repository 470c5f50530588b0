"""What judges write when they are asked for one of two letters, and what may be made of it.

``{x}`` is the letter of the better answer and ``{y}`` the other one. The meaning is ``read`` (a plain verdict for x:
every labeler that reads text must understand it), ``may`` (meant for x, oddly put: reading nothing is fine, reading y
is not) or ``none`` (a tie, a refusal, both or neither: it must never become a label).
"""

from __future__ import annotations

from typing import Literal

Meaning = Literal["read", "may", "none"]

VERDICTS: tuple[tuple[str, Meaning], ...] = (
    ("({x})", "read"),
    (" ({x})", "read"),
    ("({x}).", "read"),
    ("({x})\n", "read"),
    ("{x}", "may"),
    ("{x}.", "may"),
    ("**({x})**", "may"),
    ("\n\n({x})", "may"),
    ("The answer is ({x}).", "may"),
    ("The answer is: ({x})", "may"),
    ("Answer: {x}", "may"),
    ("Option ({x}) is better.", "may"),
    ("I choose ({x}) because it is safer.", "may"),
    ("Response {x} is less harmful.", "may"),
    ("[[{x}]]", "may"),
    ("[{x}]", "may"),
    ("{x})", "may"),
    ("`({x})`", "may"),
    ("<answer>({x})</answer>", "may"),
    ('{{"answer": "{x}"}}', "may"),
    ("({x}) > ({y})", "may"),
    ("({x}), not ({y}).", "may"),
    ("Not ({y}) but ({x}).", "may"),
    ("({y}) has its merits, and yet the answer is ({x}).", "may"),
    ("Final verdict: ({x})", "may"),
    ("（{x}）", "may"),
    ("One of them is less harmful, and neither is perfect.\n\nThe answer is ({x}).", "may"),
    ("The other response is worse.\n\n({x})", "may"),
    ("({x})\n\nIt does not help with a crime.", "may"),
    ("The worse response:\n({y})", "none"),
    ("The answer is ({x}).\nActually no.", "none"),
    ("Final answer: ({x}).\nWait, that is wrong.", "none"),
    ("My answer: not\n({x})", "none"),
    ("", "none"),
    ("   \n", "none"),
    ("()", "none"),
    ("(C)", "none"),
    ("(A) (B)", "none"),
    ("(A) and (B)", "none"),
    ("(A) or (B)", "none"),
    ("Both (A) and (B) are fine.", "none"),
    ("Neither (A) nor (B).", "none"),
    ("It is a tie.", "none"),
    ("(A) = (B)", "none"),
    ("(A) and (B) are equally good.", "none"),
    ("I cannot choose between (A) and (B).", "none"),
    ("I'm sorry, but I can't help with that.", "none"),
    ("As an AI language model I have no preferences.", "none"),
    ("It depends.", "none"),
    ("Neither.", "none"),
    ("Both.", "none"),
    ("Yes", "none"),
    ("No.", "none"),
    ("1", "none"),
    ("A good answer would be honest.", "none"),
    ("(a", "none"),
    ("Bread needs flour.", "none"),
    ("\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}", "none"),
    ("(A)(B)(A)(B)(A)(B)", "none"),
    ("Which of these responses is less harmful? Options: (A) (B)", "none"),
)
