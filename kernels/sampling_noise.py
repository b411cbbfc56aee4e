"""The noise of the sampling kernels in torch and fp64: what their draws are defined by, and held against.

One exponential variate E per (seed, position, role, token id); a row draws argmax z_i − log E_i over what is kept, which is token i with
probability softmax(z)_i. E is made of one word h of Philox4x32-10 (`noise_device` has the layout), as −log(1 − u) of u = (h + ½) · 2^-32:

    w = (k + ½) · 2^-32 in (0, ½), k = min(h, 2^32 − 1 − h), and 32 bits more where k < 128;  E = −log(1 − w) if h < 2^31, else −log(w)

so E is never 0 or infinite, both of its tails have full relative precision, and the far one reaches E = 2^-65: an event of probability
2^-40 happens with that probability. Draft, target and acceptance coins of one position read different roles, hence independent noise.

The kernels evaluate E in fp32, with a relative error below NOISE_ERROR. In units of u = 2^-24: w has 1, the conversion of its 32 bits (2
where 32 more refine it). −log2(1 − s) = s·P(s) has 4.6, 2.5 of the polynomial, the rest of Horner's rule, as a scan of s in [0, ½] shows.
  lower half  E/ln 2 = −log2(1 − w): the error of w times w/((1 − w)(−log(1 − w))) ≤ 1.45, where w is refined times 1; 4.6       ≤ 6.6
  upper half  E/ln 2 = n − log2(1 − s) ≥ 1, s exact: the error of w over ln 2, 4.6 of what is at most E/ln 2, and 1 of the sum     ≤ 8.5
"""

from __future__ import annotations

import torch

TARGET, DRAFT, ACCEPT = 0, 1, 2  # roles: who draws with the noise
NOISE_ERROR = 2.0**-20  # relative error of E in fp32: 8.5 u, and room for products and sums that are not fused
_FINE = 1 << 16  # added to the role for the bits that refine a small w
_MASK = 0xFFFFFFFF


def exponentials(seed: torch.Tensor, position: torch.Tensor, vocab: int, role: int = TARGET) -> torch.Tensor:
    """E, fp64 [rows, vocab], of ids 0 … vocab − 1 for seed and position [rows] (int64)."""
    ids = torch.arange(vocab, device=seed.device)
    counter, which = ((ids >> 12) << 10) | (ids & 1023), (ids >> 10) & 3
    word = _words(counter, which, seed, position, role)
    k = torch.minimum(word, _MASK - word)
    w = k.double().add_(0.5).mul_(2.0**-32)
    if bool((k < 128).any()):
        fine = _words(counter, which, seed, position, role + _FINE).double().add_(0.5).mul_(2.0**-32)
        w = torch.where(k < 128, (k.double() + fine) * 2.0**-32, w)
    return torch.where(word > k, -torch.log(w), -torch.log1p(-w))


def coins(seed: torch.Tensor, position: torch.Tensor, count: int) -> torch.Tensor:
    """Uniforms in [0, 1), multiples of 2^-24, fp32 [rows, count]: coin j is the top of word 0 of counter j in the role ACCEPT."""
    counter = torch.arange(count, device=seed.device)
    words = _words(counter, torch.zeros_like(counter), seed, position, ACCEPT)
    return (words >> 8).float() * 2.0**-24


def _words(counter: torch.Tensor, which: torch.Tensor, seed: torch.Tensor, position: torch.Tensor, role: int) -> torch.Tensor:
    """One 32-bit word [rows, n] as int64 per counter [n]: `which` of the four that Philox makes of it."""
    words = philox(
        (counter[None, :], (position & _MASK)[:, None], ((position >> 32) & _MASK)[:, None], torch.full_like(counter, role)[None, :]),
        ((seed & _MASK)[:, None], ((seed >> 32) & _MASK)[:, None]),
    )
    low = torch.where(which == 0, words[0], words[1])
    return torch.where(which < 2, low, torch.where(which == 2, words[2], words[3]))


def philox(counter: tuple[torch.Tensor, ...], key: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Philox4x32-10 (Salmon et al., SC 2011) on words 0 … 2^32 − 1 kept in int64, whose products wrap with the right 64 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((b >> 32) & _MASK) ^ c1 ^ k0, b & _MASK, ((a >> 32) & _MASK) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3
