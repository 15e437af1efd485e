"""Conditions on attributes: built from classes, or read from an expression."""

from __future__ import annotations

import ast
import enum
import re
from dataclasses import dataclass

from mmesh.content import AttributeValue
from mmesh.errors import InvalidFilter

MAX_DEPTH = 16
MAX_CONDITIONS = 256
MAX_SET_VALUES = 4096


class Operator(enum.Enum):
    """Comparisons."""

    EQUAL = "=="
    NOT_EQUAL = "!="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="


@dataclass(frozen=True, slots=True)
class Compare:
    """Compares one attribute with one value; false for candidates without the attribute."""

    attribute: str
    operator: Operator
    value: AttributeValue


@dataclass(frozen=True, slots=True)
class In:
    """Holds when the attribute equals any of the values."""

    attribute: str
    values: tuple[AttributeValue, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Holds when the filter does not."""

    filter: Filter


@dataclass(frozen=True, slots=True)
class AllOf:
    """Holds when all of the filters hold."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Holds when any of the filters holds."""

    filters: tuple[Filter, ...]


Filter = Compare | In | Not | AllOf | AnyOf


def parse_filter(expression: str) -> Filter:
    """Read a filter such as `topic = "cats" and (year >= 1969 or not kind in ("a", "b"))`.

    Operators: = == != < <= > >= in, and, or, not. Values: "text", numbers, true, false. An
    attribute whose name is no plain word is written in backticks.

    Raises:
        InvalidFilter: with the place and what was expected.
    """
    try:
        tree = ast.parse(_as_python(expression), mode="eval")
        return _convert(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or "it is nested too deep"
        raise InvalidFilter("filter", f"cannot be read: {reason}; {_EXAMPLE}") from None


_EXAMPLE = 'write it like: topic = "cats" and year >= 1969'
_QUOTED = r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\''
_TOKEN = re.compile(rf"({_QUOTED})|(`[^`]*`)|(<=|>=|!=|<>|==|=)|\b(AND|OR|NOT|IN|true|false)\b")
_PYTHON = {"=": "==", "<>": "!=", "true": "True", "false": "False"}


def _as_python(expression: str) -> str:
    def token(found: re.Match[str]) -> str:
        quoted, name, operator, word = found.groups()
        if name:
            return f"__attribute__({name[1:-1]!r})"
        return quoted or _PYTHON.get(operator or word, (operator or word).lower())

    return _TOKEN.sub(token, expression.strip())


_OPERATORS: dict[type[ast.cmpop], Operator] = {
    ast.Eq: Operator.EQUAL,
    ast.NotEq: Operator.NOT_EQUAL,
    ast.Lt: Operator.LESS,
    ast.LtE: Operator.LESS_OR_EQUAL,
    ast.Gt: Operator.GREATER,
    ast.GtE: Operator.GREATER_OR_EQUAL,
}


def _convert(node: ast.expr) -> Filter:
    if isinstance(node, ast.BoolOp):
        parts = tuple(_convert(value) for value in node.values)
        return AllOf(parts) if isinstance(node.op, ast.And) else AnyOf(parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return Not(_convert(node.operand))
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _comparison(node.left, node.ops[0], node.comparators[0])
    raise InvalidFilter(
        "filter", f"has {ast.unparse(node)!r} where a comparison is due; {_EXAMPLE}"
    )


def _comparison(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Filter:
    attribute = _attribute(left)
    if isinstance(operator, ast.In | ast.NotIn):
        values = _value(right)
        members = In(attribute, values if isinstance(values, tuple) else (values,))
        return Not(members) if isinstance(operator, ast.NotIn) else members
    if type(operator) not in _OPERATORS:
        raise InvalidFilter("filter", f"has an operator that is not known; {_EXAMPLE}")
    return Compare(attribute, _OPERATORS[type(operator)], _value(right))


def _attribute(node: ast.expr) -> str:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
        return str(ast.literal_eval(node.args[0]))
    if isinstance(node, ast.Name | ast.Attribute):
        return ast.unparse(node)
    raise InvalidFilter(
        "filter", f"has {ast.unparse(node)!r} where an attribute is due; {_EXAMPLE}"
    )


def _value(node: ast.expr) -> AttributeValue:
    value = ast.literal_eval(node)
    if isinstance(value, list | tuple | set):
        return tuple(value)
    if isinstance(value, str | bool | int | float):
        return value
    raise InvalidFilter("filter", f"has a value of a type that is not known: {value!r}")


def check_filter(condition: Filter, path: str = "filter") -> None:
    """Raise `InvalidFilter` when nested over 16 deep or over 256 conditions."""
    waiting, conditions = [(condition, 1)], 0
    while waiting:
        part, depth = waiting.pop()
        conditions += 1
        if depth > MAX_DEPTH or conditions > MAX_CONDITIONS:
            limit = f"at most {MAX_DEPTH} deep and {MAX_CONDITIONS} conditions are allowed"
            raise InvalidFilter(path, f"is too large; {limit}")
        waiting += [(child, depth + 1) for child in _children(part)]
        _check_values(part, path)


def _children(condition: Filter) -> tuple[Filter, ...]:
    if isinstance(condition, AllOf | AnyOf):
        return condition.filters
    return (condition.filter,) if isinstance(condition, Not) else ()


def _check_values(condition: Filter, path: str) -> None:
    if isinstance(condition, In) and not 1 <= len(condition.values) <= MAX_SET_VALUES:
        count = len(condition.values)
        raise InvalidFilter(path, f"has a set of {count} values; 1 to {MAX_SET_VALUES} are allowed")
    ordering = isinstance(condition, Compare) and condition.operator.value[0] in "<>"
    if ordering and isinstance(condition.value, bool | tuple):  # type: ignore[union-attr]  # Compare
        raise InvalidFilter(
            path, "orders booleans or lists; only numbers and strings have an order"
        )
