"""The filters, over arrays, do what a few lines of plain Python do event by event."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idgenrec_jax.data.sources.filters import (
    DUPLICATES,
    Events,
    choose_among_repeats,
    collect,
    core_filter,
    drop_exact_repeats,
    in_order_of_time,
)
from idgenrec_jax.data.sources.source import Interaction


def log_of(rows, lowest_rating=0.0, since=-math.inf, until=math.inf):
    return collect((Interaction(*row) for row in rows), lowest_rating, since, until)


def rows_of(log, events):
    """Events as (user, item, time, part)."""
    return [
        (log.user_keys[user], log.item_keys[item], time, part)
        for user, item, time, part in zip(*(column.tolist() for column in events), strict=True)
    ]


def plain_choice(rows, duplicates):
    if duplicates == "keep":
        return rows
    best = min if duplicates == "first" else max
    chosen = {pair: best(row[2] for row in rows if row[:2] == pair) for pair in {row[:2] for row in rows}}
    return [row for row in rows if row[2] == chosen[row[:2]]]


def plain_core(rows, user_core, item_core):
    while True:
        users, items = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
        kept = [row for row in rows if users[row[0]] >= user_core and items[row[1]] >= item_core]
        if len(kept) == len(rows):
            return rows
        rows = kept


def plain_order(rows):
    def key(row):
        return row[3], row[2], hashlib.blake2b(f"{row[0]} {row[1]}".encode(), digest_size=8).digest()

    return [row for user in dict.fromkeys(row[0] for row in rows) for row in sorted(
        (row for row in rows if row[0] == user), key=key)]  # fmt: skip


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["u", "v w", "7", "ü"]),
        st.sampled_from("abcde"),
        st.sampled_from([-1.0, 0.0, 1.5, 2.0, 3.0]),
        st.sampled_from([None, 1, 3.5, 5]),
        st.integers(0, 2),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    ROWS,
    st.sampled_from(DUPLICATES),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([0.0, 3.5]),
    st.sampled_from([(-math.inf, math.inf), (0.0, 2.0)]),
)
def test_they_agree_with_plain_python(rows, duplicates, user_core, item_core, lowest, span):
    log, counts = log_of(rows, lowest, *span)
    rated = [row for row in rows if lowest <= 0 or row[3] is not None and row[3] >= lowest]
    plain = [(*row[:3], row[4]) for row in rated if span[0] <= row[2] < span[1]]
    assert rows_of(log, log.events) == plain
    assert counts == {"read": len(rows), "low_rating": len(rows) - len(rated), "outside_time": len(rated) - len(plain)}

    events, exact = drop_exact_repeats(log.events)
    # The first of equal events stays, in its place.
    keys = [row[:3] for row in plain]
    distinct = [row for place, row in enumerate(plain) if row[:3] not in keys[:place]]
    assert (rows_of(log, events), exact) == (distinct, len(plain) - len(distinct))

    events, repeats = choose_among_repeats(events, duplicates)
    chosen = plain_choice(distinct, duplicates)
    assert rows_of(log, events) == chosen
    assert repeats == len(distinct) - len({row[:2] for row in distinct})

    events = core_filter(events, user_core, item_core)
    core = plain_core(chosen, user_core, item_core)
    assert rows_of(log, events) == core

    events, tied = in_order_of_time(events, log.user_keys, log.item_keys)
    assert rows_of(log, events) == plain_order(core)
    shared = Counter((row[0], row[2], row[3]) for row in core)
    assert tied == sum(count for count in shared.values() if count > 1)


def test_the_core_is_filtered_until_nothing_changes():
    # c has one buyer; without c, user w has one item; without w, item b has one buyer; and so on down the chain.
    chain = [("w", "c", 1.0), ("w", "b", 2.0), ("v", "b", 3.0), ("v", "a", 4.0)]
    core = [("u", "x", 1.0), ("u", "y", 2.0), ("t", "x", 3.0), ("t", "y", 4.0)]
    log, _ = log_of(chain + core)
    assert [row[:3] for row in rows_of(log, core_filter(log.events, 2, 2))] == core
    assert len(core_filter(log.events, 1, 1)) == 8
    # Users and items have bounds of their own.
    assert len(core_filter(log.events, 2, 1)) == 8 and len(core_filter(log.events, 1, 2)) == 6
    log, _ = log_of(chain)
    assert len(core_filter(log.events, 2, 2)) == 0


def test_ties_do_not_follow_the_file():
    items = [f"i{number:02d}" for number in range(20)]
    rows = [("u", item, 5.0) for item in items] + [("u", "late", 9.0), ("v", "b", 7.0), ("u", "early", 1.0)]

    def order(rows):
        log, _ = log_of(rows)
        events, tied = in_order_of_time(log.events, log.user_keys, log.item_keys)
        assert tied == 20
        return [row[:2] for row in rows_of(log, events)]

    found = order(rows)
    assert found[0] == ("u", "early") and found[-2:] == [("u", "late"), ("v", "b")]
    middle = [item for _, item in found[1:-2]]
    assert sorted(middle) == items and middle != items
    assert [pair for pair in order(rows[::-1]) if pair[0] == "u"] == found[:-1]


def test_the_parts_of_a_publisher_come_before_time():
    log, _ = log_of([("u", "c", 1.0, None, 2), ("u", "b", 5.0, None, 1), ("u", "a", 9.0, None, 0)])
    events, tied = in_order_of_time(log.events, log.user_keys, log.item_keys)
    assert [row[1] for row in rows_of(log, events)] == ["a", "b", "c"] and tied == 0


def test_an_unknown_choice_among_repeats():
    empty = np.zeros(0, np.int32)
    with pytest.raises(ValueError, match="duplicates is one of first, last, keep, not 'all'"):
        choose_among_repeats(Events(empty, empty, empty.astype(float), empty), "all")
