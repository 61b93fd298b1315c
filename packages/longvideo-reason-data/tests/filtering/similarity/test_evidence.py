"""Evidence that is the same is always put down where it is looked for."""

from hypothesis import example, given
from hypothesis import strategies as st

from longvideo_reason_data.filtering.similarity.evidence import SAME_EVIDENCE, cells_of, shared_time
from longvideo_reason_data.records.record import Interval


def make_evidence(*spans: tuple[float, float, int]) -> list[Interval]:
    return [
        Interval(start_seconds=start, end_seconds=start + seconds, medium=medium) for start, seconds, medium in spans
    ]


SPAN = st.tuples(
    st.one_of(st.integers(0, 12).map(float), st.floats(0, 12)),
    st.one_of(st.sampled_from([0.5, 1.0, 2.0, 4.0]), st.floats(0.001, 9)),
    st.integers(0, 1),
)
EVIDENCE = st.lists(SPAN, max_size=4).map(lambda spans: make_evidence(*spans))


@given(EVIDENCE, EVIDENCE)
@example(make_evidence((0, 2, 0)), make_evidence((1, 1, 0)))  # exactly half, and the first halves only touch
@example(make_evidence((0, 1, 0), (5, 1, 0)), make_evidence((5, 1, 0)))  # exactly half, behind a gap
@example(make_evidence((0, 1, 0), (0, 1, 1)), make_evidence((0, 1, 1)))  # in another medium
@example(make_evidence((0, 0.1, 0), (1, 0.2, 0)), make_evidence((1, 0.15, 0)))  # sums that are rounded
def test_the_same_evidence_is_looked_for_where_it_was_put(first: list[Interval], second: list[Interval]) -> None:
    if shared_time(first, second) >= SAME_EVIDENCE:
        assert set(cells_of(first)[0]) & set(cells_of(second)[1])
        assert set(cells_of(second)[0]) & set(cells_of(first)[1])


def test_evidence_elsewhere_is_not_looked_at() -> None:
    own = set(cells_of(make_evidence((10, 3, 0)))[0])
    for other in ((100, 3, 0), (10, 3, 1), (10, 30, 0), (10, 0.3, 0)):
        assert not own & set(cells_of(make_evidence(other))[1])
    assert not own & set(cells_of([])[1])
    assert cells_of([])[0] == cells_of([])[1]


def test_the_cells_of_long_and_of_short_evidence_are_few() -> None:
    for seconds in (0.001, 1.0, 7.0, 86400.0):
        own, near = cells_of(make_evidence((1234.5, seconds, 0)))
        assert len(own) <= 2
        assert len(near) <= 8
