"""What a model says -> the option it means: a table."""

from __future__ import annotations

import pytest

from vlmoe.tasks.parse import parse_answer

CHOICES = ("a blue ball", "a red cat", "cat", "None of these")

TABLE = [
    # a letter alone
    ("B", 1),
    ("B.", 1),
    ("(B)", 1),
    ("**B**", 1),
    ("`B`", 1),
    ("b", 1),
    ("b.", 1),
    ("B)", 1),
    (" B\n", 1),
    ("'B'", 1),
    # a letter in words
    ("B. a red cat", 1),
    ("(B) a red cat", 1),
    ("B: because it is furry", 1),
    ("The answer is B.", 1),
    ("The answer is B", 1),
    ("the answer is **B**, I think", 1),
    ("Answer: B", 1),
    ("B is correct", 1),
    # an option's text
    ("a red cat", 1),
    ("A red cat.", 1),  # not the option A
    ("Cat", 2),
    ("none of these", 3),
    ("It looks to me like a red cat", 1),  # not `cat`, its end
    ("In the picture there is a blue ball and nothing else", 0),
    ("I first saw a blue ball but it is a red cat", 1),  # the last one
    # several letters: the last
    ("A or B", 1),
    ("(A) or (B)", 1),
    ("B, or is it A?", 0),
    ("not (A) but (C)", 2),
    # marked letters go before those that stand alone
    ("(B) A dog", 1),
    # small letters, where they cannot be words
    ("The answer is b.", 1),
    ("the answer is b", 1),
    ("Answer: b", 1),
    ("The correct answer is: 'c'.", 2),
    ("Option b", 1),
    ("option b is correct", 1),
    ("I would choose option (b).", 1),
    ("b) A dog", 1),
    ("b. A dog", 1),
    ("b: A dog", 1),
    ("(b) A dog", 1),
    ("Let me see.\nc) A dog", 2),
    ("The answer is a.", 0),
    ("Option a", 0),
    ("a) dog", 0),
    ("It could be (a), but it is (b)", 1),
    ("The answer is a dog", None),
    ("The answer is a dog.", None),
    ('The answer is a "big" dog', None),
    ("The answer is a (big) dog", None),
    ("Option b - A dog", 1),
    ("an option a user has", None),
    ("The answer is a big animal and nothing else, I would say", None),
    ("there is a dog", None),
    ("it is f(b) then", None),
    ("The answer isn't d'accord", None),
    # beside Chinese, Japanese and Korean; full width
    ("\u7b54\u6848\u662fB\u3002", 1),
    ("B\u3002", 1),
    ("\uff08B\uff09", 1),
    ("\u7b54\u6848\uff1aB", 1),
    ("\u9009B", 1),
    ("\u9009\u9879B\u662f\u6b63\u786e\u7684", 1),
    ("\u6b63\u786e\u7b54\u6848\u662f\uff22\u3002", 1),
    ("\uff22", 1),
    ("\uff22\uff0e\u7ea2\u8272\u7684\u732b", 1),
    ("B\u3001\u7ea2\u732b", 1),
    ("B.\u7ea2\u732b", 1),
    ("\u3010B\u3011", 1),
    ("\u7b54\u6848\u662fb\u3002", 1),
    ("\u9009b", 1),
    ("\u7b54\u3048\u306fB\u3067\u3059", 1),
    ("\uc815\ub2f5\uc740 B\uc785\ub2c8\ub2e4", 1),
    ("\u7b54\u6848\u662fABBA", None),
    ("\u7b54\u6848\u662fdog", None),
    # none
    ("", None),
    (".", None),
    ("a dog", None),
    ("E", None),  # there are four options
    ("(E)", None),
    ("concatenation of several words that hold cat inside", 2),
    ("concatenation of several words in here", None),  # within a word
    ("I do not know what that could possibly be", None),
    ("it is cat", None),  # up to five words are not searched for an option's text
    ("ABBA", None),
    ("B's", None),
]


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_table(text, expected):
    assert parse_answer(text, CHOICES) == expected


@pytest.mark.parametrize("text", ["B.A dog", "B:A dog.", "b) A dog", "(B)A dog", "**B.** A dog"])
def test_a_letter_with_its_own_text(text):
    """The article at its text's beginning is no letter."""
    assert parse_answer(text, ["A cat", "A dog"]) == 1


def test_only_letters_that_are_shown():
    assert parse_answer("C", ("x", "y")) is None
    assert parse_answer("C", ("x", "y", "z")) == 2
    assert parse_answer("The answer is C or B.", ("x", "y")) == 1


def test_options_that_are_letters_or_punctuation():
    assert parse_answer("B", ("B", "A")) == 1  # the letter was asked for
    assert parse_answer("", ("?", "!")) is None
    assert parse_answer("this is what we call 2*3 in arithmetic", ("2*3", "5")) == 0


def test_options_with_signs_of_regular_expressions():
    assert parse_answer("I believe that it must be f(x) = [0, 1", ("f(x) = [0, 1", "y")) == 0


def test_signs_that_only_look_alike_stay_apart():
    assert parse_answer("x\u00b2", ("x2", "x\u00b2")) == 1
