"""Masked never drawn: an id of probability zero is never drawn, emitted or accepted, whatever the noise and the coins.

Kernels break it by a uniform that may be 0 or 1 (−inf + inf wins an argmax as NaN), by accepting where coin ≤ p/q instead of coin < p/q.
"""

from stabcheck.choices import masked_draws
from stabcheck.laws import law


@law("an id of probability zero is never drawn, emitted or accepted", traits=["ids"])
def test_masked_never_drawn(case):
    yield from masked_draws(case)
