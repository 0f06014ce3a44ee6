"""Whole numbers for grids and blocks."""

from __future__ import annotations


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The least power of two that is not below n, for n >= 1."""
    return 1 << (n - 1).bit_length()


def power_of_two_in(n: int) -> int:
    """The largest power of two that divides n, for n >= 1."""
    return n & -n


def fill_tiles(*widths: int) -> bool:
    """Whether tiles, whose least side is 16, cover each of these exactly."""
    return all(power_of_two_in(width) >= 16 for width in widths)
