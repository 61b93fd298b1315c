"""The index finds what comparing each with each finds, and looks at few."""

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvideo_reason_data.filtering.near_duplicates import likeness
from longvideo_reason_data.filtering.similarity.set_index import RankedSets, SetIndex

Sets = list[frozenset[str]]


def find_pairs(sets: Sets, at_least: float) -> set[tuple[int, int]]:
    """Find all pairs by adding one set after the other."""
    index = SetIndex(RankedSets(sets), at_least)
    found: set[tuple[int, int]] = set()
    for place in range(len(sets)):
        found |= {(other, place) for other in index.find(place)}
        index.add(place)
    return found


def compare_all(sets: Sets, at_least: float) -> set[tuple[int, int]]:
    """Find all pairs by comparing each with each."""
    return {
        (first, second)
        for first, second in combinations(range(len(sets)), 2)
        if likeness(sets[first], sets[second]) >= at_least
    }


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6).map(frozenset), max_size=25), st.integers(3, 10))
def test_all_pairs_are_found_and_no_others(sets: Sets, tenths: int) -> None:
    assert find_pairs(sets, tenths / 10) == compare_all(sets, tenths / 10)


@pytest.mark.parametrize("at_least", [0.5, 0.6, 0.8])
@pytest.mark.parametrize("num_words", [12, 60, 1000])
def test_all_pairs_are_found_among_sets_of_many_sizes(num_words: int, at_least: float) -> None:
    generator = random.Random(num_words)
    words = [f"word{number}" for number in range(num_words)]
    sets = [frozenset(generator.choices(words, k=generator.randint(0, 40))) for _ in range(150)]
    sets += [members ^ frozenset(generator.choices(words, k=generator.randint(0, 9))) for members in sets]
    pairs = compare_all(sets, at_least)
    assert len(pairs) > 50
    assert find_pairs(sets, at_least) == pairs


def test_a_pair_exactly_as_alike_as_asked_for_is_found() -> None:
    sets = [frozenset("abc"), frozenset("abcde")]
    assert find_pairs(sets, 0.6) == {(0, 1)}
    assert find_pairs(sets, 0.61) == set()


def test_only_the_rooms_that_are_looked_into_count() -> None:
    index = SetIndex(RankedSets([frozenset("abcd")] * 3), 0.6)
    index.add(0, ["left", "middle"])
    index.add(1, ["right"])
    assert [index.find(2, rooms) for rooms in (["left"], ["right", "middle"], ["elsewhere"], [])] == [
        [0],
        [0, 1],
        [],
        [],
    ]
