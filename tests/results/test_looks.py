"""What is said of prototypes that deserve a look: sentences of the report, lines of the summary."""

import dataclasses

import pytest

from i2x_jax.explanation.ranking import FIRST, Alarm, Ranked
from i2x_jax.results import findings, summary

FOUND = Ranked(
    prototype=7,
    rank=1,
    name="3",
    evidence=0.412,
    over_median=3.18,
    exclusivity=0.97,
    exclusive="3",
    in_class=0.98,
    in_others=0.0052,
    entropy=0.2,
    since=152,
    drop={"validation": -0.012, "audit": 0.095},
)


def words(**changed):
    return findings.looks(dataclasses.replace(FOUND, **changed))


def test_one_sentence_says_why():
    assert words() == (
        "One place of it gives “3” 0.41 logits more than the mean of all classes, as much evidence as 3.2 places of "
        "the median prototype; it is in 98 % of the images of “3” and 0.5 % of the others; half of that evidence is "
        "there from step 152 on; leaving it out of the pool costs 1.2 points on validation images and gains 9.5 points "
        "on audit images."
    )


@pytest.mark.parametrize(
    ("changed", "there", "missing"),
    [
        ({"drop": {}}, "from step 152 on.", "pool"),
        ({"drop": {"validation": 0.0}}, "leaves accuracy on validation images as it is.", "audit"),
        ({"over_median": None}, "the mean of all classes; it is in", "median"),
        ({"in_class": 1.0, "in_others": 0.0}, "in 100 % of the images of “3” and 0 % of the others", "0.0"),
        ({"evidence": 0.0, "since": None}, "No place of it tells any class from the others.", "step"),
        ({"name": "a\x1b[2J"}, "gives “a\\x1b[2J”", "\x1b"),
    ],
)
def test_what_is_not_known_is_not_said(changed, there, missing):
    assert there in words(**changed)
    assert missing not in words(**changed)


def test_alarms_say_what_they_rest_on():
    by_audit = findings.alarm(Alarm(7, "audit", 0.095, 0.0004))
    assert "prototype 7 the network is better on the audit set, by 9.5 points" in by_audit
    assert f"asked of {FIRST} prototypes: p = 0.0004)" in by_audit
    assert "p < 0.0001)" in findings.alarm(Alarm(7, "audit", 0.11, 2e-7))
    by_evidence = findings.alarm(Alarm(7, "evidence", 3.18, None))
    assert "prototype 7 gives 3.2 times the evidence" in by_evidence
    assert "does not tell a shortcut from an honest feature" in by_evidence


def test_the_order_says_what_it_rests_on():
    assert "counted from the blank image" not in findings.order([FOUND])
    assert "Not ranked" not in findings.order([FOUND])
    others = [dataclasses.replace(FOUND, drop={}), dataclasses.replace(FOUND, drop={}, rank=None)]
    assert "evidence is counted from the blank image, and no prototype can be left out" in findings.order(others)
    assert "Not ranked, and last: 1 of under 0.05 % of the locations." in findings.order(others)


class TestSummary:
    RANKING = tuple(dataclasses.replace(FOUND, prototype=k, rank=rank) for rank, k in enumerate((7, 2, 0, 5, 1, 4), 1))

    def test_two_lines_without_an_alarm(self):
        first, second = summary.look_first(self.RANKING, ()).split("\n")
        assert first == "Look here first, by evidence per location: 7, 2, 0, 5, 1"
        assert second == (
            "  prototype 7: one place gives class 3 as much as 3.2 of the median's; in 98 % of 3, 0.5 % of others; "
            "from step 152 on"
        )

    @pytest.mark.parametrize(
        ("alarms", "line"),
        [
            ([Alarm(7, "evidence", 3.2, None)], "prototype 7 stands out from all others"),
            (
                [Alarm(7, "audit", 0.095, 0.0), Alarm(0, "audit", 0.03, 0.0)],
                "left out, they make the network better on the audit set: 7 +9.5 points, 0 +3.0 points",
            ),
        ],
    )
    def test_three_with_one(self, alarms, line):
        lines = summary.look_first(self.RANKING, alarms).split("\n")
        assert len(lines) == 3
        assert lines[2].startswith("  ALARM: ")
        assert line in lines[2]

    def test_nothing_to_rank_and_nothing_told(self):
        none = dataclasses.replace(FOUND, rank=None)
        assert summary.look_first((none,), ()) == (
            "Look here first, by evidence per location: none has enough places to be ranked"
        )
        silent = dataclasses.replace(FOUND, evidence=0.0, over_median=None, since=None)
        assert summary.look_first((silent, none), ()) == "Look here first, by evidence per location: 7"
