"""The operations in fifty digits, row by row: what the fp64 references are audited against."""

import mpmath

inf = float("inf")
AUDITED = 2.0**-20  # of a tolerance


def shifted(x, t=1):
    """(m, z, log d) of a row."""
    m = max(x)
    z = [-mpmath.inf if v == -inf else (mpmath.mpf(v) - m) / mpmath.mpf(t) for v in x]
    return m, z, mpmath.log(mpmath.fsum(mpmath.exp(v) for v in z))


def logsumexp(x):
    with mpmath.workdps(50):
        m, _, log_d = shifted(x)
        return mpmath.mpf(m) + log_d


def logprob(x, label, t):
    """(log-probability, entropy)."""
    with mpmath.workdps(50):
        _, z, log_d = shifted(x, t)
        weighted = (mpmath.exp(v - log_d) * v for v in z if v != -mpmath.inf)
        return z[label] - log_d, log_d - mpmath.fsum(weighted)


def loss(x, target, upstream=1.0, label_smoothing=0.0, lse_square_scale=0.0, softcap=0.0, masked_smoothing="skip"):
    """(loss, gradient) of a row that is not ignored."""
    with mpmath.workdps(50):
        eps, zeta, cap = map(mpmath.mpf, (label_smoothing, lse_square_scale, softcap))
        tanh = [mpmath.tanh(mpmath.mpf(v) / cap) if abs(v) < inf else mpmath.mpf(v > 0) * 2 - 1 for v in x] if softcap else None
        y = [cap * v for v in tanh] if tanh else x
        m, z, log_d = shifted(y)
        lse, share = m + log_d, eps / len(x)
        taking = [v > -inf or masked_smoothing == "inf" for v in y]
        value = (1 - eps) * (log_d - z[target]) + zeta * lse**2
        value += share * mpmath.fsum(log_d - v for v, takes in zip(z, taking, strict=True) if takes) if eps else 0
        scale = 1 - eps + share * sum(taking) + 2 * zeta * lse
        bracket = [scale * mpmath.exp(v - log_d) - share * takes for v, takes in zip(z, taking, strict=True)]
        bracket[target] -= 1 - eps
        slope = [1 - v**2 for v in tanh] if tanh else [1] * len(x)
        return value, [mpmath.mpf(upstream) * b * s for b, s in zip(bracket, slope, strict=True)]


def share_of_bound(exact, value, bound):
    """The error of a reference's value as a share of its bound; infinite where there must be none."""
    if mpmath.isinf(exact) or abs(value) == inf:
        return 0.0 if exact == value else inf
    error = abs(exact - mpmath.mpf(value))
    return float(error / mpmath.mpf(bound)) if error and bound else inf if error else 0.0


def sane(row):
    """Rows that no policy rules."""
    return -inf < max(row) < inf and all(v == v for v in row)


# ---- filters


ROUNDING = 200 * 2.0**-24  # a generous multiple of what any kernel errs by, per column


class Filters:
    """A row under filters: sorted ids, and how many tokens each policy keeps. `near`: some comparison is as close as rounding."""

    def __init__(self, x, t, k, p, min_p):
        self.order = sorted(range(len(x)), key=lambda i: (-x[i], i))
        self.x = [x[i] for i in self.order]
        self.k, self.p, self.min_p, self.t, self.near = k, mpmath.mpf(p), mpmath.mpf(min_p), t, False
        with mpmath.workdps(50):
            z = [-mpmath.inf if v == -inf else (mpmath.mpf(v) - self.x[0]) / mpmath.mpf(t) for v in self.x] if t else [0] * len(x)
            self.e = [mpmath.exp(v) for v in z]
            self.running = [mpmath.fsum(self.e[:n]) for n in range(len(x) + 1)]
            floor = mpmath.log(self.min_p) if min_p > 0 else -mpmath.inf
            self.close_to_min_p = any(v and abs(v - floor) <= ROUNDING * len(x) * (1 + abs(floor)) for v in z if v > -mpmath.inf)

    def end(self, n, ties):
        """n, or behind the last that ties with place n − 1."""
        return sum(v >= self.x[n - 1] for v in self.x) if ties == "keep_all" else n

    def kept(self, order, top_k_ties, top_p_ties, crossing):
        """How many are kept under these policies."""
        vocab, everything = len(self.x), len(self.x)
        if not self.t:
            return 1
        by_k = self.end(self.k if 0 < self.k < vocab else vocab, top_k_ties)
        by_min_p = max(1, sum(v >= self.min_p for v in self.e)) if self.min_p > 0 else everything
        self.near = self.min_p > 0 and self.close_to_min_p
        base = {"top_k, top_p, min_p": by_k, "top_k & top_p, min_p": everything, "min_p, top_k, top_p": min(by_k, by_min_p)}[order]
        return min(by_k, self.nucleus(base, crossing, top_p_ties) if self.p < 1 else everything, by_min_p)

    def nucleus(self, base, crossing, ties):
        """How many top-p keeps of the first `base`."""
        with mpmath.workdps(50):
            shares = [mass / self.running[base] for mass in self.running]
            self.near |= any(abs(s - self.p) <= ROUNDING * len(self.x) * max(s, self.p) for s in shares)
        last = [j for j in range(base) if (shares[j + 1] <= self.p if crossing == "dropped" else shares[j] < self.p)]
        return self.end(max(last, default=0) + 1, ties)
