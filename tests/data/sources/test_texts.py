"""Plain text out of markup, lists and numbers."""

import datetime

import pytest

from idgenrec_jax.data.sources.texts import joined, listed, plain_text


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("sizes <5 and >3", "sizes <5 and >3"),
        ("a < b > c, I <3 it", "a < b > c, I <3 it"),
        ("Pens &amp; <b>Ink</b>", "Pens & Ink"),
        ("<br/>one<br>two<BR />three", "one two three"),
        ("it's <b class='a>b'>x</b> don't", "it's x don't"),
        ('<a title="x>y" href=z>k</a>', "k"),
        ("<p title=it's>x</p>", "x"),
        ("<!DOCTYPE html>x", "x"),
        ("x <b", "x <b"),
        # Comments, scripts and style sheets, in any case, longer than any limit, and never closed.
        ("a<!-- c -->b<!-- open", "a b"),
        ("a<!--" + "x > " * 1000 + "-->b", "a b"),
        ("<style>.a{}</style >t", "t"),
        ("<STYLE type='text/css'>" + "p > a {} " * 500 + "</Style>t", "t"),
        ('t<SCRIPT type="a>b">if (a < b) {}', "t"),
        ("t<script", "t<script"),
        ("<scripty>kept", "kept"),
        # Entities once.
        ("&amp;lt;", "&lt;"),
        ("&amp;lt;b&amp;gt; R&amp;D", "&lt;b&gt; R&D"),
        ("sizes &lt;5 &#38; &eacute;", "sizes <5 & é"),
        ("&#xD800;", "\ufffd"),
        # Markup that was escaped as a whole.
        ("&lt;b&gt;Soft&lt;/b&gt; &amp;amp; light", "Soft & light"),
        ("&lt;style&gt;.a{}&lt;/style&gt;t&lt;!-- c --&gt;", "t"),
        ("how to use &lt;script&gt; well", "how to use well"),
        # One line, composed, no halves of characters.
        (" two\r\n\tlines\u2028x\x00 ", "two lines x"),
        ("e\u0301\ud800", "é?"),
    ],
)
def test_plain_text(raw, plain):
    assert plain_text(raw) == plain


@pytest.mark.parametrize(
    "part", ["<a <a", "<a '", '<a "', "<!--", "<script", "<script>", "<script></script", "&lt;!--"]
)
def test_a_megabyte_of_anything_ends(part):
    # Time that grows with the square of the length would be hours here.
    assert isinstance(plain_text(part * (2**20 // len(part))), str)


def test_values_of_any_type():
    assert joined(["Smooth.", "", None, ["White.", {"a": 1}, True]]) == "Smooth. White."
    assert joined([3, 2.5, float("nan"), float("inf"), 10**5000, datetime.date(2020, 1, 2)]) == "3 2.5 2020-01-02"
    assert joined(None) == joined({}) == joined("N/A") == joined(["null", " "]) == ""
    assert listed(["Office", ["Pens", "Office"], "NaN"]) == "Office, Pens"


def test_a_list_written_as_a_text_is_a_list():
    assert listed("['Toys', \"Kids' Games\"]") == "Toys, Kids' Games"
    assert joined("[ 'a', ['b']]") == "a b"
    assert joined("['a', ") == "['a',"
    assert joined("['a'] and more") == "['a'] and more"
    assert joined("[1, 2]") == "[1, 2]"
