"""Exact match and F1 of answers, against values worked out by hand from the rules of SQuAD's official scripts."""

from __future__ import annotations

import pytest

from fairseq.criterions.scores import exact_match, normalize_answer, squad_f1, squad_score

# prediction, answers, exact match, F1; by the rules of 1.1.
CASES = [
    ("Denver Broncos", ["Denver Broncos"], 1, 1.0),
    ("the Denver Broncos", ["Denver Broncos"], 1, 1.0),  # articles do not count
    ("The  Denver\nBroncos.", ["denver broncos"], 1, 1.0),  # case, whitespace, punctuation
    ("Denver", ["Denver Broncos"], 0, 2 / 3),  # precision 1, recall 1/2
    ("the Denver Broncos team", ["Denver Broncos"], 0, 4 / 5),  # precision 2/3, recall 1
    ("Carolina Panthers", ["Denver Broncos"], 0, 0.0),
    ("Santa Clara", ["Santa Clara, California", "Levi's Stadium", "Santa Clara"], 1, 1.0),  # the best of several
    ("Levis Stadium in California", ["Santa Clara, California", "Levi's Stadium"], 0, 2 * (2 / 4) * 1 / (2 / 4 + 1)),
    ("U.S.", ["us"], 1, 1.0),  # punctuation goes without leaving a space
    ("well-known", ["well known"], 0, 0.0),  # ... so a hyphen joins its words
    ("$5,000", ["5000"], 1, 1.0),
    ("1 000", ["1000"], 0, 0.0),
    ("to be or not to be", ["to be"], 0, 2 * (2 / 6) * 1 / (2 / 6 + 1)),  # words count as often as they occur
    ("be be be", ["to be or not to be"], 0, 2 * (2 / 3) * (2 / 6) / (2 / 3 + 2 / 6)),
    ("Théodore", ["théodore"], 1, 1.0),
    ("Théodore", ["Theodore"], 0, 0.0),  # accents are letters of their own
    ("“Denver”", ["Denver"], 0, 0.0),  # only ASCII punctuation is taken away
    ("東京 タワー", ["東京"], 0, 2 / 3),
    ("", ["Denver"], 0, 0.0),
    ("an apple a day", ["apple day"], 1, 1.0),
    ("another", ["other"], 0, 0.0),  # "an" is an article only as a word
    ("The", ["the"], 1, 0.0),  # nothing is left: the same, but no common word
]

# The same by the rules of 2.0, where an empty list (or answers without words) means that there is no answer.
CASES_2 = [
    ("", [], 1, 1.0),
    ("Denver", [], 0, 0.0),
    ("the", [], 1, 1.0),  # a prediction of articles says nothing
    ("", ["Denver"], 0, 0.0),
    ("", ["the", "..."], 1, 1.0),
    ("Denver", ["the", "Denver Broncos"], 0, 2 / 3),  # answers without words do not count beside others
    ("", ["the", "Denver Broncos"], 0, 0.0),
    ("The Denver Broncos!", ["Denver Broncos"], 1, 1.0),
]


@pytest.mark.parametrize("prediction, answers, em, expected", CASES)
def test_rules_of_1_1(prediction: str, answers: list[str], em: int, expected: float) -> None:
    assert squad_score(prediction, answers) == (em, pytest.approx(expected))


@pytest.mark.parametrize("prediction, answers, em, expected", CASES_2)
def test_rules_of_2_0(prediction: str, answers: list[str], em: int, expected: float) -> None:
    assert squad_score(prediction, answers, no_answer=True) == (em, pytest.approx(expected))


@pytest.mark.parametrize("prediction, answers, em, expected", [case for case in CASES if case[0] not in ("The", "")])
def test_both_rules_agree_where_there_are_words(prediction: str, answers: list[str], em: int, expected: float) -> None:
    assert squad_score(prediction, answers, no_answer=True) == (em, pytest.approx(expected))


def test_normalization_goes_in_the_official_order() -> None:
    # Lower case first (articles are found), punctuation before articles ("a." is one), spaces last.
    assert normalize_answer("  The cat, A. dog;  an-owl ") == "cat dog anowl"
    assert normalize_answer("THEATRE of the Absurd") == "theatre of absurd"
    assert exact_match("a the an", "") == 1
    assert squad_f1("a b c", "c b a") == 1


def test_a_question_without_known_answer_scores_nothing_by_1_1() -> None:
    assert squad_score("anything", []) == (0.0, 0.0)
