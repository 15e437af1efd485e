"""Ids take what people's files are called; names of files map to ids and back."""

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmesh.candidates import Candidate, check_attributes, check_candidate
from mmesh.content import Content
from mmesh.errors import InvalidField
from mmesh.values.ids import check_id, id_of_path, path_of_id

TAKEN = [
    "Screenshot 2024-05-01 at 9.41.07\u202fAM.png",  # macOS, narrow no-break space
    "a\u00a0b.jpg",
    "\u5199\u771f\u30001.jpg",  # ideographic space
    "\U0001f468\u200d\U0001f469\u200d\U0001f467.png",  # a family, joined
    "soft\u00adhyphen.png",
    "\u202eabc.png",
    "caf\u00e9.png",
    "cafe\u0301.png",  # the same word, decomposed
    "\ue000\U000f0001.png",  # private use
    "\U0001fbff\u0378\ufffe.png",  # not assigned, and a noncharacter
    " leading and trailing ",
    "-dash.png",
]
REFUSED = [
    ("a\nb", r"U\+000A LINE FEED as character 2.*%0A"),
    ("\x1b[31m", r"U\+001B ESCAPE as character 1"),
    ("x\x9b", r"U\+009B \(a control character\) as character 2"),
    ("\u2028", r"U\+2028 LINE SEPARATOR"),
    ("caf\udce9", r"the byte 0xE9, which is no UTF-8 as character 4.*%E9"),
    ("\ud800", r"U\+D800 \(a surrogate\)"),
]


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_a_system_gave_is_an_id_and_stays_as_it_is(name):
    check_id(name, "candidate.id")
    assert id_of_path(name) == name


@pytest.mark.parametrize(("name", "message"), REFUSED)
def test_what_is_refused_names_the_character_and_its_place(name, message):
    with pytest.raises(InvalidField, match=message):
        check_candidate(Candidate(name, Content.of("x")), "candidate")


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (b"caf\xe9.png", "caf%E9.png"),
        (b"two\nlines.png", "two%0Alines.png"),
        ("100% sure.png", "100% sure.png"),
        ("50%25.png", "50%2525.png"),
        ("%0A", "%250A"),
    ],
)
def test_what_no_id_holds_is_percent_encoded(path, wanted):
    assert id_of_path(path) == wanted


@given(st.binary(min_size=1, max_size=30))
@example(b"%%0A\n%4\n1%25%e9\xe9\xed\xa0\x80\xc2\x85\xe2\x80\xa8")
def test_every_path_has_an_id_of_its_own(path):
    made = id_of_path(path)
    check_id(made, "candidate.id")
    assert os.fsencode(path_of_id(made)) == path


@pytest.mark.parametrize("name", ["My Column", "Größe (cm)", "a/b", "年", "x" * 256])
def test_an_attribute_is_named_as_people_name_columns(name):
    check_attributes({name: 1}, "candidate.attributes")


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "without a name"), ("a\tb", r"U\+0009 TAB as character 2"), ("x" * 257, "257 bytes")],
)
def test_an_attribute_that_has_no_fit_name_is_refused(name, message):
    with pytest.raises(InvalidField, match=message):
        check_attributes({name: 1}, "candidate.attributes")
