"""Bound on an instruction's tokens: the text behind it is what is cut, and must keep room."""

from __future__ import annotations

from mmesh.errors import InputTooLong


def check_instruction_length(tokens: int, room: int) -> None:
    """Refuse an instruction that takes more than half of what a model reads.

    Raises:
        InputTooLong: it does; its field is `instruction`.
    """
    if tokens > room // 2:
        problem = f"is {tokens} tokens long; at most {room // 2} fit; shorten it"
        raise InputTooLong("instruction", problem)
