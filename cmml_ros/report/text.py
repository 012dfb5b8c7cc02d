"""Numbers and times as people read them."""

from __future__ import annotations

import math
from datetime import datetime, timezone

_95 = 1.96  # deviations to each side of a 95 % interval


def format_quantity(value: float, std: float = math.nan, factor: float = 1.0) -> str:
    """`value` times `factor`, to the second digit of its deviation, or to three digits without one; a dash for NaN."""
    if math.isnan(value):
        return '–'
    value, std = value * factor, std * factor
    # Two digits of the deviation, three of the value itself.
    last_digit = math.floor(math.log10(std)) - 1 if std > 0 else math.floor(math.log10(abs(value) or 1.0)) - 2
    text = _round(value, last_digit)
    return f'{text} ± {_round(std, last_digit)}' if std > 0 else text


def format_interval(value: float, std: float, factor: float) -> str:
    """The 95 % interval of a quantity that is not negative; a dash when unknown."""
    if not (math.isfinite(value) and std > 0.0):
        return '–'
    last_digit = math.floor(math.log10(std * factor)) - 1
    low, high = max(value - _95 * std, 0.0) * factor, (value + _95 * std) * factor
    return f'{_round(low, last_digit)} to {_round(high, last_digit)}'


def format_utc(stamp_ns: int) -> str:
    """Date and time to the millisecond, UTC; seconds when the clock started at boot or in a simulation."""
    if stamp_ns < 10**18:  # before September 2001
        return f'{stamp_ns / 1e9:.3f} s'
    moment = datetime.fromtimestamp(stamp_ns // 10**9, tz=timezone.utc)
    return f'{moment:%Y-%m-%d %H:%M:%S}.{stamp_ns // 10**6 % 1000:03d} UTC'


def _round(value: float, last_digit: int) -> str:
    """To the digit 10**last_digit, thousands set apart by a narrow space."""
    return f'{round(value, -last_digit):,.{max(-last_digit, 0)}f}'.replace(',', '\N{NARROW NO-BREAK SPACE}')
