import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calque.errors import DataError
from calque.evaluate.distractors import Pool, texts


@given(st.lists(st.text("ab ", min_size=1, max_size=30), min_size=4, max_size=40, unique=True), st.randoms())
def test_the_right_text_stands_among_others_of_like_length_in_an_order_of_its_own(listed, random):
    pool = Pool.of(listed)
    own = random.choice(listed)
    choices, right = pool.among(own)
    assert choices[right] == own
    assert len(set(choices)) == 4
    assert set(choices) <= set(listed)
    random.shuffle(listed)
    assert Pool.of(listed).among(own) == (choices, right)


def test_wrong_choices_are_near_in_length():
    pool = Pool.of("x" * n for n in range(1, 200))
    choices, _ = pool.among("x" * 100)
    assert all(abs(len(choice) - 100) <= 6 for choice in choices)


def test_the_right_choice_stands_anywhere():
    pool = Pool.of(f"text number {n}" for n in range(400))
    places = [pool.among(text)[1] for text in pool.listed]
    assert all(60 < places.count(n) < 140 for n in range(4))


def test_too_few_texts_are_refused():
    with pytest.raises(DataError, match="2 other texts to take 3 wrong choices from"):
        Pool.of(["a", "b", "c"]).among("a")


def test_examples_without_the_sides_are_left_out_and_none_is_refused(tmp_path):
    rows = [
        {"id": "1", "sides": {"nya_Latn": "madzi"}},
        {"id": "2", "sides": {"nya_Latn": "a", "eng_Latn": "b"}},
    ]
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [e.id for e in texts(tmp_path, ["nya_Latn", "eng_Latn"])] == ["2"]
    with pytest.raises(DataError, match="no example with a side in swh_Latn"):
        texts(tmp_path, ["swh_Latn"])
    (tmp_path / "examples.jsonl").write_text('{"id": "1"}')
    with pytest.raises(DataError, match=r"examples\.jsonl:1: no 'sides'"):
        texts(tmp_path, ["nya_Latn"])
