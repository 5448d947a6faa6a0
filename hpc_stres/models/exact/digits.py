"""Floating-point numbers as integers, whose sums are associative: the heart of bitwise training.

A number v is written in digits of 40 bits, as int64: v = d0 * u + d1 * u * 2^-40 + ..., each digit
rounded to the nearest integer of what the digits before it left. A sum adds digits to digits and
never carries, so that neither the order of the terms nor the cut over ranks can show in it. Two
digits with the first unit 2^-20 hold a gradient to 2^-61, and four with the first unit 2^20 hold
moments and losses to 2^-101: what is lost is less than the last bit of a float32 of 2^-37 (of
2^-77), and nothing at all of a larger one. In float32's own sums each addition loses up to half
of the last bit of the sum so far.

A first digit may have 50 bits and a sum MOST_TERMS terms: 62 bits of 63. A term that does not fit,
NaN and infinity among them, is counted, and the sum is NaN.
"""

import torch
from torch import Tensor

DIGIT_BITS = 40
FIRST_BITS = 50
MOST_TERMS = 4096
# Exponent of the first unit, and the number of digits.
GRADIENT = (-20, 2)
MOMENT = (20, 4)
Form = tuple[int, int]


def digits_of(values: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """The digits (digits, *shape) of numbers, and how many numbers do not fit (one int64)."""
    first, count = form
    rest = values.detach().to(torch.float64) * 2.0**-first
    fits = rest.abs() < 2.0**FIRST_BITS
    # What does not fit has no digits; the count says so.
    rest = torch.where(fits, rest, 0.0)
    places = []
    for _ in range(count):
        place = rest.round()
        places.append(place.to(torch.int64))
        rest = (rest - place) * 2.0**DIGIT_BITS
    return torch.stack(places), (~fits).sum()


def number_of(digits: Tensor, misfits: Tensor, form: Form) -> Tensor:
    """The numbers (float64) whose digits these are, or sums of digits; NaN where a
    term did not fit."""
    first, count = form
    value = torch.zeros_like(digits[0], dtype=torch.float64)
    # The smallest first, as a person would to lose least; each operation is rounded the
    # same way anywhere.
    for place in reversed(range(count)):
        value = value + digits[place].to(torch.float64) * 2.0 ** (first - DIGIT_BITS * place)
    return torch.where(misfits > 0, torch.nan, value)
