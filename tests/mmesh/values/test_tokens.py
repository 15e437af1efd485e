import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesh.errors import InvalidField
from mmesh.values.tokens import Token, newest

epochs = st.text(st.characters(exclude_characters=":", exclude_categories=["Cs"]), max_size=20)
tokens = st.builds(Token, epochs, st.integers(0, 10**18 - 1))


@given(tokens)
def test_a_token_is_read_as_it_was_written(token):
    assert Token.parse(str(token)) == token


@pytest.mark.parametrize(
    "text", ["", "e", ":", "e:", "e:-1", "e: 1", "e:1:2", "e:²", "e:" + "9" * 19, "e:1\n"]
)
def test_what_is_no_token_is_refused_by_name(text):
    with pytest.raises(InvalidField) as refused:
        Token.parse(text, "search.token")
    assert refused.value.field == "search.token"


def test_tokens_compare_within_their_history_only():
    old, new, other = Token("e", 9), Token("e", 10), Token("f", 11)
    assert old.shares_history(new)
    assert not old.shares_history(other)
    assert newest([old, new]) == new
    with pytest.raises(ValueError, match="history"):
        newest([old, other])
    with pytest.raises(ValueError, match="history"):
        newest([])
