r"""The filter language: expressions such as `topic = "cats" and year >= 1969`, read and printed.

    filter     = all { "or" all }
    all        = one { "and" one }
    one        = "not" one | "(" filter ")" | condition
    condition  = attribute operator value | attribute [ "not" ] "in" list
               | attribute "is" [ "not" ] "null" | "exists" attribute
    operator   = "=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">="
    value      = text | number | time | "true" | "false" | list
    list       = "(" value { "," value } [ "," ] ")", or with [ ] or { }
    attribute  = a letter or _, then letters, digits, _ . -; or any name in backticks
    time       = RFC 3339, such as 2024-01-31 (midnight) or 2024-01-31T12:30:00Z; UTC by default
    text       = characters in " " or ' '

Keywords are read in any case. In texts and names the quote is doubled or escaped (`\"`), as is a
backslash before a quote (`\\`); any other backslash stands for itself. A recursive descent parser:
its work is linear, its depth bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime
from typing import NamedTuple, NoReturn

from mmesh.content import AttributeValue
from mmesh.errors import InvalidFilter
from mmesh.filters import AllOf, AnyOf, Compare, Exists, Filter, In, Not, Operator
from mmesh.values.timestamps import format_timestamp, parse_timestamp

MAX_NESTING = 64
"""Brackets and `not` within each other; a filter may be 16 deep (`check_filter`)."""
_EXAMPLE = 'write it like: topic = "cats" and year >= 1969'
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>   "(?:[^"\\]|\\.|"")*" | '(?:[^'\\]|\\.|'')*' )
  | (?P<name>   `(?:[^`\\]|\\.|``)*` )
  | (?P<time>   \d+-\d+-\d+[^\s"'`()\[\]{},=<>]* )
  | (?P<number> [+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]) )
  | (?P<word>   [^\W\d][\w.\-]* )
  | (?P<sign>   <=|>=|!=|<>|==|[=<>()\[\]{},] )
  | (?P<other>  \S+? (?=[\s"'`()\[\]{},=<>]|$) )
    )""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS = frozenset(("and", "or", "not", "in", "is", "null", "exists", "true", "false"))
_OPERATORS = {one.value: one for one in Operator} | {"=": Operator.EQUAL, "<>": Operator.NOT_EQUAL}
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_MEANT = {"&&": "and", "&": "and", "||": "or", "|": "or", "!": "not", "like": "="}
"""What other languages write, and what is written here."""


def parse_filter(expression: str) -> Filter:
    """Read a filter such as `topic = "cats" and (year >= 1969 or not kind in ("a", "b"))`.

    Operators: = == != <> < <= > >= in, is null, is not null, and, or, not. Values: "text", numbers,
    times such as 2024-01-31 or 2024-01-31T12:30:00Z, true, false, lists. An attribute whose name is
    no plain word is written in backticks. The module has the grammar.

    Raises:
        InvalidFilter: with the column, and what was expected.
    """
    return _Parser(expression).parse()


def format_filter(condition: Filter) -> str:
    """Return an expression that `parse_filter` reads as `condition`.

    `AllOf` and `AnyOf` of one filter are printed as that filter, and those of none as `()`, which
    is no expression.
    """
    match condition:
        case AllOf(filters):
            return _joined(filters, " and ")
        case AnyOf(filters):
            return _joined(filters, " or ")
        case Not(Exists(attribute)):
            return f"{_name(attribute)} is null"
        case Not(inner):
            return f"not {_grouped(inner)}"
        case Exists(attribute):
            return f"{_name(attribute)} is not null"
        case In(attribute, values):
            return f"{_name(attribute)} in {_literal(values)}"
        case Compare(attribute, operator, value):
            sign = "=" if operator is Operator.EQUAL else operator.value
            return f"{_name(attribute)} {sign} {_literal(value)}"


def _joined(filters: tuple[Filter, ...], word: str) -> str:
    if len(filters) == 1:
        return format_filter(filters[0])
    return word.join(map(_grouped, filters)) or "()"


def _grouped(condition: Filter) -> str:
    text = format_filter(condition)
    return f"({text})" if isinstance(condition, AllOf | AnyOf) else text


def _name(attribute: str) -> str:
    found = _TOKEN.fullmatch(attribute)
    plain = found and found["word"] == attribute and attribute.lower() not in _KEYWORDS
    return attribute if plain else _quoted(attribute, "`")


def _literal(value: AttributeValue | tuple[AttributeValue, ...]) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))})"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date):
        return format_timestamp(value)
    return _quoted(value, '"') if isinstance(value, str) else repr(value)


def _quoted(text: str, quote: str) -> str:
    escaped = text.replace("\\", "\\\\").replace(quote, f"\\{quote}")
    return f"{quote}{escaped}{quote}"


def _unquoted(token: str) -> str:
    quote = token[0]
    return re.sub(rf"\\([\\\"'`])|{quote}({quote})", r"\1\2", token[1:-1], flags=re.DOTALL)


class _Token(NamedTuple):
    kind: str
    """`text`, `name`, `number`, `time`, `word`, `keyword`, `sign`, `other`, or `end`."""
    text: str
    column: int

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else self.text[:40]


def _tokens(expression: str) -> Iterator[_Token]:
    place = 0
    while found := _TOKEN.match(expression, place):
        group = str(found.lastgroup)
        token = _Token(group, found[group], found.start(group) + 1)
        is_keyword = group == "word" and token.text.lower() in _KEYWORDS
        yield token._replace(kind="keyword", text=token.text.lower()) if is_keyword else token
        place = found.end()
    yield _Token("end", "", len(expression.rstrip()) + 1)


class _Parser:
    """Reads one expression; looks one token ahead."""

    def __init__(self, expression: str) -> None:
        self._tokens = _tokens(expression)
        self._next = next(self._tokens)
        self._nesting = 0

    def parse(self) -> Filter:
        condition = self._any()
        if self._next.kind != "end":
            self._refuse(f"found {self._next} where `and`, `or` or the end is due")
        return condition

    def _any(self) -> Filter:
        parts = [self._all()]
        while self._take("or"):
            parts.append(self._all())
        return AnyOf(tuple(parts)) if len(parts) > 1 else parts[0]

    def _all(self) -> Filter:
        parts = [self._one()]
        while self._take("and"):
            parts.append(self._one())
        return AllOf(tuple(parts)) if len(parts) > 1 else parts[0]

    def _one(self) -> Filter:
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            self._refuse(f"it is nested too deep; {MAX_NESTING} brackets are allowed")
        try:
            if self._take("not"):
                return Not(self._one())
            if self._take("("):
                condition = self._any()
                self._expect(")")
                return condition
            return self._condition()
        finally:
            self._nesting -= 1

    def _condition(self) -> Filter:
        if self._take("exists"):
            return self._existence()
        attribute = self._attribute()
        if self._take("is"):
            is_negated = self._take("not")
            self._expect("null")
            return Exists(attribute) if is_negated else Not(Exists(attribute))
        is_negated = self._take("not")
        if self._take("in"):
            value = self._value(attribute)
            members = In(attribute, value if isinstance(value, tuple) else (value,))
            return Not(members) if is_negated else members
        operator = _OPERATORS.get(self._next.text)
        if is_negated or operator is None:
            self._refuse(f"found {self._next} where an operator is due, such as =, >= or in")
        self._advance()
        return Compare(attribute, operator, self._value(attribute))

    def _existence(self) -> Filter:
        if not self._take("("):
            return Exists(self._attribute())
        found = Exists(self._attribute())
        self._expect(")")
        return found

    def _attribute(self) -> str:
        token = self._next
        if token.kind not in ("word", "name"):
            self._refuse(f"found {token} where the name of an attribute is due")
        self._advance()
        return _unquoted(token.text) if token.kind == "name" else token.text

    def _value(self, attribute: str) -> AttributeValue:
        token = self._next
        if token.text in _CLOSING:
            return self._list(attribute)
        if token.kind == "text":
            value: AttributeValue = _unquoted(token.text)
        elif token.kind == "number":
            value = self._number(token)
        elif token.kind == "time":
            value = self._time(token)
        elif token.text == "null" and token.kind == "keyword":
            self._refuse(f"null is no value; write {attribute} is null, or {attribute} is not null")
        elif token.text in ("true", "false"):
            value = token.text == "true"
        elif token.kind == "word":
            self._refuse(f'{token} is a text without quotes; write {attribute} = "{token}"')
        else:
            self._refuse(f"found {token} where a value is due")
        self._advance()
        return value

    def _list(self, attribute: str) -> AttributeValue:
        end = _CLOSING[self._next.text]
        self._advance()
        values: list[AttributeValue] = []
        while not self._take(end):
            if self._next.text in _CLOSING:
                self._refuse("a list holds no lists")
            values.append(self._value(attribute))
            if self._next.text != end:
                self._expect(",")
        return tuple(values)  # type: ignore[arg-type]  # whether they are alike is for the index to say

    def _number(self, token: _Token) -> int | float:
        if not re.fullmatch(r"[+-]?\d+", token.text):
            return float(token.text)
        if len(token.text) > 20 or not -(1 << 63) <= int(token.text) < 1 << 63:
            self._refuse(f"{token} does not fit into 64 bits")
        return int(token.text)

    def _time(self, token: _Token) -> datetime:
        try:
            return parse_timestamp(token.text)
        except ValueError as error:
            self._refuse(str(error))

    def _take(self, text: str) -> bool:
        """Step over a keyword or sign if it is the next token."""
        found = self._next.text == text and self._next.kind in ("keyword", "sign")
        if found:
            self._advance()
        return found

    def _expect(self, text: str) -> None:
        if not self._take(text):
            self._refuse(f"found {self._next} where {text} is due")

    def _advance(self) -> None:
        self._next = next(self._tokens)

    def _refuse(self, problem: str) -> NoReturn:
        token = self._next
        if token.kind == "other" and token.text[0] in "\"'`":
            problem = f"{token.text[0]} is never closed; a backslash before a quote is written \\\\"
        elif meant := _MEANT.get(token.text.lower()) or _MEANT.get(token.text[:1]):
            problem += f"; write {meant}"
        raise InvalidFilter(
            "filter", f"cannot be read at column {token.column}: {problem}; {_EXAMPLE}"
        )
