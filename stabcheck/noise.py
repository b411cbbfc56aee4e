"""Noise: counter-based integer hashes and what is made of them, with the same bits on every device.

tape[i] = hash(i), a 32-bit integer hash computed once per device in wrapping integer arithmetic. A row reads V consecutive entries from a
start that depends on (seed, archetype, sibling).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from stabcheck.floats import by_name

TAPE_BITS = 20  # places a row may start at
TAPE_TAIL = 1 << 18  # entries behind the last place: the widest row before the noise repeats


def noise(starts: torch.Tensor, vocab: int, kind: str) -> torch.Tensor:
    """[n, V] noise: V consecutive entries of a tape from each start; wider rows repeat their noise."""
    tape = _tape(str(starts.device), kind)
    width = min(vocab, TAPE_TAIL)
    rows = tape.unfold(0, width, 1)[starts]
    return rows if width == vocab else rows.repeat(1, -(-vocab // width))[:, :vocab].contiguous()


@lru_cache(maxsize=16)
def _tape(device: str, kind: str) -> torch.Tensor:
    """The tape of hashes (int32), or of bell variates made of them (fp32, exact: 23 significant bits)."""
    counter = torch.arange((1 << TAPE_BITS) + TAPE_TAIL, dtype=torch.int32, device=device)
    h = _hash_tensor(counter)
    if kind == "hash":
        return h
    level = (h & 0xFF) + ((h >> 8) & 0xFF) + ((h >> 16) & 0xFF) + ((h >> 24) & 0xFF) - 510  # four bytes: -510..510, deviation 148
    fraction = _hash_tensor(h) & 0x1FFF  # 13 more bits, so that ties are rare
    return (level.double() + fraction.double() / 8192 - 0.5).div(128).float()


def _hash_tensor(x: torch.Tensor) -> torch.Tensor:
    """C. Wellons' lowbias32 on int32 with wrapping multiplication and logical shifts (github.com/skeeto/hash-prospector)."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - (1 << 32))
    return x ^ ((x >> 16) & 0xFFFF)


def hashed(x: np.ndarray) -> np.ndarray:
    """The same hash on uint32."""
    x = x.astype(np.uint32)
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return np.asarray(x ^ (x >> 16))


def finite_bits(h: torch.Tensor, dtype: str) -> torch.Tensor:
    """Hashes as bit patterns of the format; where the exponent is all ones its lowest bit is cleared."""
    fmt = by_name(dtype)
    field, low = {"fp32": (0x7F800000, 0x00800000), "bf16": (0x7F80, 0x0080), "fp16": (0x7C00, 0x0400)}[dtype]
    x = h if fmt.bits == 32 else h.to(torch.int16)
    return torch.where((x & field) == field, x ^ low, x).view(fmt.torch)
