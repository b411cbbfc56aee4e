"""Coin grid: for coins (i + ½)/N the share that accepts a draft is min(1, p/q) and the share that emits an id its residual, each ± 1/N.

Stratified coins leave nothing to chance, so there are no false alarms and the error falls with 1/N, not with 1/√N. Kernels break it by a
residual that is softmaxed instead of normalised, by coins compared with p instead of p/q.
"""

from stabcheck.choices import coin_grid
from stabcheck.laws import law


@law(
    "shares of a stratified grid of coins are the probabilities they stand for, within 1/N",
    traits=["verifies"],
    row_local=False,
    weight=0.5,
)
def test_coin_grid(case):
    if case.batch.logits.numel():
        yield from coin_grid(case)
