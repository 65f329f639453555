"""Label options: their ranges, what they cannot be combined with, and what manifests show."""

import pytest

from erprm_trl.rollouts import LabelOptions


class Judge:
    """A judge that is never asked."""

    def score(self, questions, steps):
        raise AssertionError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_question_rate": 1.5}, "min_question_rate: got 1.5, expected a rate from 0 to 1"),
        ({"min_question_rate": float("nan")}, "min_question_rate: got nan"),
        ({"error_tolerance": -1}, "error_tolerance: got -1, expected a number of steps"),
        ({"error_tolerance": True}, "error_tolerance: got True"),
        ({"error_tolerance": 1.0}, "error_tolerance: got 1.0"),
        ({"label_correct_solutions": "one"}, "label_correct_solutions: got 'one', expected 'continuations' or 'ones'"),
        ({"agreement_tolerance": 1}, "agreement_tolerance: got 1 without agree_with"),
        ({"agree_with": Judge(), "agreement_tolerance": -1}, "agreement_tolerance: got -1"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        LabelOptions(**options)


def test_manifests_show_the_options_that_are_set():
    assert LabelOptions().to_json() == {}
    assert LabelOptions(error_tolerance=0).to_json() == {"error_tolerance": 0}
    options = LabelOptions(relative=True, agree_with=Judge(), agreement_tolerance=1)
    assert options.to_json("a judge") == {"relative": True, "agree_with": "a judge", "agreement_tolerance": 1}


def test_relative_labels_need_the_sample_estimator():
    LabelOptions(relative=True).check("sample")
    LabelOptions(min_question_rate=0.2, error_tolerance=1).check("posterior")
    with pytest.raises(ValueError, match="relative: got True with the estimator 'posterior'.*estimator='sample'"):
        LabelOptions(relative=True).check("posterior")


def test_only_two_options_need_rates():
    assert LabelOptions(relative=True).needs_question_rates
    assert LabelOptions(min_question_rate=0.1).needs_question_rates
    assert not LabelOptions(error_tolerance=1, label_correct_solutions="ones").needs_question_rates
