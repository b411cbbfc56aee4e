"""The three floating-point formats of logits: their constants, roundings and neighbours, in pure Python.

Values are Python floats (fp64), in which every number of the three formats is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from stabcheck.errors import UsageError


@dataclass(frozen=True)
class Format:
    """A binary format with `precision` significant bits (the hidden one counted) and exponents `emin`..`emax`."""

    name: str
    bits: int
    precision: int
    emin: int
    emax: int

    @property
    def u(self) -> float:
        """Unit roundoff of round-to-nearest: 2^-precision."""
        return 2.0**-self.precision

    @property
    def max(self) -> float:
        """Largest finite value."""
        return (2 - 2.0 ** (1 - self.precision)) * 2.0**self.emax

    @property
    def tiny(self) -> float:
        """Smallest positive normal value."""
        return 2.0**self.emin

    @property
    def subnormal(self) -> float:
        """Smallest positive subnormal value."""
        return 2.0 ** (self.emin - self.precision + 1)

    @property
    def torch(self) -> Any:
        """The torch dtype."""
        import torch

        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.name]

    def ulp(self, value: float) -> float:
        """Distance from |value| to the next larger magnitude: 2^(max(e, emin) - precision + 1)."""
        if not math.isfinite(value):
            return math.nan
        exponent = math.frexp(value)[1] - 1 if value else self.emin
        return 2.0 ** (max(exponent, self.emin) - self.precision + 1)

    def round(self, value: float) -> float:
        """Nearest value of the format, ties to even; beyond the largest finite value, that value (never a new infinity)."""
        if not math.isfinite(value):
            return value
        step = self.ulp(value)
        return math.copysign(min(round(abs(value) / step) * step, self.max), value)

    def text(self, value: float) -> str:
        """The shortest decimal text that rounds to the value."""
        rounded = (float(f"{value:.{digits}g}") for digits in range(1, 17))
        return repr(next((r for r in rounded if value != value or r == value or self.round(r) == value), value)).removesuffix(".0")

    def neighbour(self, value: float, steps: int = 1) -> float:
        """The value `steps` places above (below if negative) a value of the format; stays finite."""
        ordered = self._order(self.round(value)) + steps
        limit = self._order(self.max)
        return self._unorder(max(-limit, min(limit, ordered)))

    def _order(self, value: float) -> int:
        """Index of a value among all values of the format: monotone, 0 for both zeros."""
        magnitude = abs(value)
        if magnitude < self.tiny:
            index = round(magnitude / self.subnormal)
        else:
            mantissa, exponent = math.frexp(magnitude)
            fraction = round((2 * mantissa - 1) * 2 ** (self.precision - 1))
            index = ((exponent - 1 - self.emin + 1) << (self.precision - 1)) + fraction
        return index if value >= 0 else -index

    def _unorder(self, index: int) -> float:
        exponent, fraction = divmod(abs(index), 1 << (self.precision - 1))
        scale = self.emin + max(exponent, 1) - 1 - (self.precision - 1)
        magnitude = math.ldexp(fraction + ((1 << (self.precision - 1)) if exponent else 0), scale)
        return magnitude if index >= 0 else -magnitude


FP32 = Format("fp32", 32, 24, -126, 127)
FP16 = Format("fp16", 16, 11, -14, 15)
BF16 = Format("bf16", 16, 8, -126, 127)
FORMATS = {f.name: f for f in (FP32, BF16, FP16)}


def by_name(name: str) -> Format:
    """The format called "fp32", "fp16" or "bf16"."""
    if name not in FORMATS:
        raise UsageError(f"unknown dtype {name!r}; use one of {', '.join(FORMATS)}")
    return FORMATS[name]


def name_of(dtype: Any) -> str:
    """The short name of a torch dtype."""
    for name, fmt in FORMATS.items():
        if fmt.torch is dtype:
            return name
    raise UsageError(f"dtype {dtype} is not supported; use one of {', '.join(FORMATS)}")


def to_hex(value: float) -> str:
    """Exact text of a float: C99 hex, or "nan", "inf", "-inf"."""
    return value.hex() if math.isfinite(value) else str(value)


def from_hex(text: str) -> float:
    """Inverse of `to_hex`; raises ValueError for anything else."""
    return float.fromhex(text)
