"""Keys, times and ratings of raw records, and what becomes of faulty ones."""

from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import pytest

from idgenrec_jax.data.sources.values import Faults, RowFault, key_of, number_of, rating_of, time_reader
from idgenrec_jax.errors import InputError


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("0108775015", "0108775015"),
        (" two words ", "two words"),
        ("İstanbul कुर्सी 椅子", "İstanbul कुर्सी 椅子"),
        ("a\u00a0b", "a\u00a0b"),
        ("\U0001f600", "\U0001f600"),
        (12, "12"),
        (-3, "-3"),
        (12.0, "12"),
        (2**64 - 1, "18446744073709551615"),
    ],
)
def test_keys_are_kept_exactly(value, key):
    assert key_of(value, "item") == key


@pytest.mark.parametrize(
    "value", [None, "", " \t", True, 1.5, float("nan"), float("inf"), 2.0**60, 10**40, [1], {}, b"a", "a\nb", "a\tb",
              "\x00", "a\x85b", "a\u2028b", "\ud800", "a" * 1001],
)  # fmt: skip
def test_what_is_no_key(value):
    with pytest.raises(RowFault, match="^item (is|has) .*(expected a key|half a character)"):
        key_of(value, "item")


@pytest.mark.parametrize(
    ("value", "number"), [(3, 3), (2.5, 2.5), ("7", 7), (" 4.5 ", 4.5), ("-1", -1), ("1e3", 1000.0), ("007", 7)]
)
def test_numbers(value, number):
    assert number_of(value, "x") == number


@pytest.mark.parametrize("value", [None, True, "", "good", "1_0", "²", [], "9" * 5000])
def test_what_is_no_number(value):
    with pytest.raises(RowFault, match=r"^x is .*, expected a number$"):
        number_of(value, "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "-inf", "nan", "1e999", 2**63, 10**400, "9" * 400])
def test_numbers_that_no_file_of_numbers_holds(value):
    with pytest.raises(RowFault, match=r"expected a finite number below 2\*\*63$"):
        number_of(value, "x")


def test_ratings_may_be_missing():
    assert [rating_of(value, "stars") for value in (None, float("nan"), "", "  ", "N/A", "null")] == [None] * 6
    assert (rating_of("4.5", "stars"), rating_of(0, "stars")) == (4.5, 0)
    with pytest.raises(RowFault, match=r"stars is \[5\], expected a number"):
        rating_of([5], "stars")


MOMENT = datetime(2023, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("unit", "value", "seconds"),
    [
        ("s", 1685620800, 1685620800),
        ("s", "1685620800.5", 1685620800.5),
        ("ms", 1588687728923, 1588687728.923),
        ("us", "1588687728923000", 1588687728.923),
        ("iso", "2023-06-01", 1685577600),
        ("iso", " 2023-06-01T12:00:00Z ", 1685620800),
        ("iso", "2023-06-01 12:00:00", 1685620800),
        ("iso", "2023-06-01T14:00:00+02:00", 1685620800),
        ("iso", MOMENT, 1685620800),
        ("s", MOMENT, 1685620800),
        ("s", MOMENT.replace(tzinfo=None), 1685620800),
        ("ms", MOMENT.astimezone(timezone(timedelta(hours=5))), 1685620800),
        ("s", date(2023, 6, 1), 1685577600),
        ("%d.%m.%Y", "01.06.2023", 1685577600),
        ("%a %b %d %H:%M:%S %z %Y", "Thu Jun 01 05:00:00 -0700 2023", 1685620800),
        ("%Y", "1960", -315619200),
    ],
)
def test_times_are_seconds_since_1970(unit, value, seconds):
    assert time_reader(unit, "time")(value) == seconds


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("s", "2023-06-01", "a number"),
        ("s", None, "a number"),
        ("iso", "yesterday", "a date such as 2023-06-01"),
        ("iso", None, "a date such as"),
        ("%d.%m.%Y", "2023-06-01", r"a date as %d\.%m\.%Y"),
    ],
)
def test_what_is_no_time(unit, value, expected):
    with pytest.raises(RowFault, match=f"^when is .*, expected {expected}"):
        time_reader(unit, "when")(value)


@pytest.mark.parametrize("unit", ["", "minutes", "%Q", "%", "%Y %Y", "Y-m-d"])
def test_units_that_are_none(unit):
    with pytest.raises(InputError, match="--time_unit=.*: expected s, ms, us, iso or a format such as"):
        time_reader(unit, "time")


def test_the_first_fault_stops():
    with pytest.raises(InputError) as caught:
        Faults().note(Path("log.csv"), 7, "found it")
    assert str(caught.value) == (
        "log.csv:7: found it; mend or remove the line, or leave such lines out with --bad_lines=skip"
    )


def test_skipped_faults_are_counted_once_and_five_are_shown():
    faults = Faults(skip=True)
    for _ in range(2):  # A file is read once for events and once for texts.
        for line in range(1, 8):
            faults.note(Path("log.csv"), line, "odd")
    faults.note(Path("items.csv"), 1, "odd")
    assert faults.count == 8
    assert faults.places == [f"log.csv:{line}: odd" for line in range(1, 6)]
