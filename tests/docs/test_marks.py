"""Figures and sources in pages are filled in from where they are, and what is missing is said."""

from pathlib import Path

import pytest

from services.index.config import IndexSettings
from tools import plans
from tools.figures import show
from tools.marks import cited_figures, fill


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (26626.858, 3, "26,600"),
        (6.757, 2, "6.8"),
        (0.974, 3, "0.974"),
        (0.9699, 2, "0.97"),
        (49.5, 3, "49.5"),
        (99.96, 3, "100"),
        (1820, 4, "1,820"),
        (0.0, 3, "0.00"),
    ],
)
def test_a_figure_is_shown_with_the_digits_that_count(value, digits, shown):
    assert show(value, digits) == shown


def test_a_stale_figure_is_replaced_by_the_stored_one():
    page = "in <!-- figure search-ms -->10<!-- end --> ms"
    filled = fill(page)
    assert filled != page
    assert fill(filled) == filled
    assert filled.startswith("in <!-- figure search-ms -->")
    assert cited_figures(page) == {"search-ms"}


def test_a_table_that_nobody_makes_is_named():
    assert fill("<!-- table failures -->\n<!-- end -->").count("\n| ") > 5
    with pytest.raises(ValueError, match="'nothing'"):
        fill("<!-- table nothing --><!-- end -->")


def test_a_coefficient_and_a_table_of_plans_are_filled_in():
    page = "<!-- coefficient build-million-s -->0<!-- end --> <!-- plans growth -->x<!-- end -->"
    filled = fill(page)
    assert "-->0<" not in filled
    assert "| index pods |" in filled
    assert fill(filled) == filled


def test_plans_on_pages_assume_the_settings_that_are_the_default():
    assert IndexSettings.model_fields["poll_s"].default == plans.POLL_S


def test_a_source_is_shown_as_it_is():
    page = "<!-- source tests/node/client.mjs connect --><!-- end -->"
    source = Path("tests/node/client.mjs").read_text("utf-8")
    part = source.partition("// [connect]\n")[2].partition("// [end]")[0]
    assert part.endswith("});\n")
    assert f"```js\n{part}```\n" in fill(page)


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("<!-- coefficient no-such -->1<!-- end -->", "no-such"),
        ("<!-- plans no-such -->1<!-- end -->", "no-such"),
        ("<!-- figure no-such -->1<!-- end -->", "no-such"),
        ("<!-- source tests/node/client.mjs no-such --><!-- end -->", "no-such"),
        ("<!-- figure a -->1 <!-- figure search-ms -->2<!-- end -->", "has no end"),
    ],
)
def test_a_mark_that_cannot_be_filled_is_named(page, problem):
    with pytest.raises(ValueError, match=problem):
        fill(page)
