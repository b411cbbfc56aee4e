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
