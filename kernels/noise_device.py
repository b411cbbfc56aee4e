"""Device code of the noise: one exponential variate per token id, made of Philox4x32-10, for the races of `race_device`.

Token `id` reads word (id >> 10) & 3 of the Philox call whose key is the row's seed and whose counter is ((id >> 12 << 10) | (id & 1023),
position lo, position hi, role): a call serves four runs of 1024 ids, so a tile of 4096 ids is four runs with one call per lane.
`sampling_noise` has the same definition in torch and fp64, and the error of this one.

A word h is u = (h + ½) · 2^-32, and E = −log(1 − u). With w = (k + ½) · 2^-32, k the steps from h to the nearer end, that is −log(1 − w)
in the lower half and −log(w) in the upper, both with full relative precision. Where k < 128, 32 more bits from the role + 2^16 refine w.
The winner of −E and z is argmin E · exp(−z): no second logarithm.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox(counter, position, role, seed):
    """Four words [BLOCK] uint32 of Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011); 64-bit position and seed."""
    c0 = counter.to(tl.uint32)
    c1 = position.to(tl.uint32)
    c2 = (position >> 32).to(tl.uint32)
    c3 = role.to(tl.uint32)
    key_0 = seed.to(tl.uint32)
    key_1 = (seed >> 32).to(tl.uint32)
    for _round in tl.static_range(10):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ key_0
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ key_1
        c1 = b.to(tl.uint32)
        c3 = a.to(tl.uint32)
        key_0 = tl.add(key_0, 0x9E3779B9, sanitize_overflow=False)
        key_1 = tl.add(key_1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def steps(word):
    """k: from the word to the nearer end."""
    return tl.minimum(word, word ^ 0xFFFFFFFF)


@triton.jit
def coarse(k):
    """2^33 · w = 2k + 1."""
    return (k * 2 + 1).to(tl.float32)


@triton.jit
def refined(w, k, more):
    """2^33 · w = 2k + (2 · more + 1) · 2^-32 where k < 128, else as it was."""
    return tl.where(k < 128, (k * 2).to(tl.float32) + (more.to(tl.float32) * 2.0**-31 + 2.0**-32), w)


@triton.jit
def exponential(word, w):
    """E / ln 2: n − log2(1 − s), s in [0, ½], where 1 − s is w's mantissa and n its exponent, or s = w and n = 0: 1 − w is never formed.

    −log2(1 − s)/s is a minimax polynomial, its error 2^-22.7.
    """
    bits = w.to(tl.int32, bitcast=True)
    upper = word >= 2147483648
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)  # [½, 1)
    n = 159.0 - (bits & 0x7F800000).to(tl.float32) * 2.0**-23  # w is 2^33 w, and exponents have a bias of 126
    s = tl.where(upper, 1.0 - mantissa, w * 2.0**-33)
    p = 1.7094943523406982 * s - 1.56033194065094
    p = p * s + 1.1331368684768677
    p = p * s + 0.054848648607730865
    p = p * s + 0.39277446269989014
    p = p * s + 0.4787765443325043
    p = p * s + 0.721400260925293
    p = p * s + 1.4426947832107544
    return p * s + tl.where(upper, n, 0.0)


@triton.jit
def uniform(word):
    """2^32 · u in fp32, or half a step less, but never 0: 2^-33 is what the least of the refined words has."""
    return word.to(tl.float32) + 2.0**-33


@triton.jit
def exponentials_of_ids(ids, seed, position, role):
    """E / ln 2 of any ids [BLOCK] int32: one call of Philox each."""
    counter = ((ids >> 12) << 10) | (ids & 1023)
    which = (ids >> 10) & 3
    word = _chosen(which, philox(counter, position, role, seed))
    k = steps(word)
    w = coarse(k)
    if tl.min(k, 0) < 128:
        w = refined(w, k, _chosen(which, philox(counter, position, role + 65536, seed)))
    return exponential(word, w)


@triton.jit
def _chosen(which, words):
    return tl.where(which < 2, tl.where(which == 0, words[0], words[1]), tl.where(which == 2, words[2], words[3]))


@triton.jit
def exponentials_of_runs(tile, lanes, seed, position, role):
    """E / ln 2 of lanes [BLOCK] of the four runs of a tile."""
    counter = tile * 1024 + lanes
    a, b, c, d = philox(counter, position, role, seed)
    k_a, k_b, k_c, k_d = steps(a), steps(b), steps(c), steps(d)
    w_a, w_b, w_c, w_d = coarse(k_a), coarse(k_b), coarse(k_c), coarse(k_d)
    if tl.min(tl.minimum(tl.minimum(k_a, k_b), tl.minimum(k_c, k_d)), 0) < 128:
        more = philox(counter, position, role + 65536, seed)
        w_a, w_b = refined(w_a, k_a, more[0]), refined(w_b, k_b, more[1])
        w_c, w_d = refined(w_c, k_c, more[2]), refined(w_d, k_d, more[3])
    return exponential(a, w_a), exponential(b, w_b), exponential(c, w_c), exponential(d, w_d)
