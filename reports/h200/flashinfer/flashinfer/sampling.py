"""The functions of flashinfer.sampling that `stabcheck bench` times, with the buffers and launches of FlashInfer 0.7.2's own."""

import ctypes
from functools import lru_cache
from pathlib import Path

import torch

_KERNELS = ctypes.CDLL(str(Path(__file__).with_name("kernels.so")))
_KERNELS.softmax.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_uint] * 2 + [ctypes.c_void_p] * 2 + [ctypes.c_size_t, ctypes.c_void_p]
_KEYED = [ctypes.c_uint] * 2 + [ctypes.c_uint64] * 2 + [ctypes.c_void_p]
_KERNELS.sample.argtypes = [ctypes.c_void_p] * 2 + _KEYED
_KERNELS.sample_k_p.argtypes = [ctypes.c_void_p] * 5 + _KEYED
_KERNELS.sample_min_p.argtypes = [ctypes.c_void_p] * 4 + _KEYED
for _name in ("renorm_k", "renorm_p"):
    getattr(_KERNELS, _name).argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_uint] * 2 + [ctypes.c_void_p] * 2

_offset = 0


def _call(name: str, *args: object) -> None:
    """Launch on the current stream; tensors travel as addresses."""
    passed = [arg.data_ptr() if isinstance(arg, torch.Tensor) else arg for arg in args]
    code = getattr(_KERNELS, name)(*passed, torch.cuda.current_stream().cuda_stream)
    if code:
        raise RuntimeError(f"{name}: CUDA error {code}")


@lru_cache
def _buffer(name: str) -> torch.Tensor:
    return torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")


def _ids(rows: int) -> torch.Tensor:
    return torch.empty(rows, dtype=torch.int32, device="cuda")


def _valid(rows: int) -> torch.Tensor:
    return torch.empty(rows, dtype=torch.bool, device="cuda")


def softmax(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    probs = torch.empty_like(logits)
    _call("softmax", logits, probs, *logits.shape, temperature, _buffer("softmax"), 1 << 20)
    return probs


def _key(increment: int) -> tuple[int, int]:
    """(seed, offset), the offset of each call behind that of the last: how much of a row is read depends on them."""
    global _offset
    _offset += increment
    return 7, _offset


def sampling_from_logits(logits: torch.Tensor) -> torch.Tensor:
    ids = _ids(len(logits))
    _call("sample", logits, ids, *logits.shape, *_key(logits.numel()))
    return ids


def top_k_top_p_sampling_from_probs(
    probs: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, *, filter_apply_order: str
) -> torch.Tensor:
    assert filter_apply_order == "joint"
    ids = _ids(len(probs))
    _call("sample_k_p", probs, top_k, top_p, ids, _valid(len(probs)), *probs.shape, *_key(32 * len(probs)))
    return ids


def min_p_sampling_from_probs(probs: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    ids = _ids(len(probs))
    _call("sample_min_p", probs, min_p, ids, _valid(len(probs)), *probs.shape, *_key(len(probs)))
    return ids


def top_k_renorm_probs(probs: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(probs)
    _call("renorm_k", probs, out, top_k, *probs.shape, _buffer("top_k"))
    return out


def top_p_renorm_probs(probs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    rows, vocab = probs.shape
    kept = max(-(-(vocab // 32) // 256) * 256, 256)
    workspace = torch.empty(sum(-(-size * rows // 256) * 256 for size in (384, 4 * 2048, 4 * 2048, 4 * kept, 4 * kept)),
                            dtype=torch.uint8, device="cuda")  # fmt: skip
    out = torch.empty_like(probs)
    _call("renorm_p", probs, out, top_p, rows, vocab, workspace)
    return out
