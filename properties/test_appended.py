"""Appended columns: −inf, or values too small to have a share, behind the last column change nothing: a padded vocabulary is harmless.

Kernels break it by searching a threshold linearly between the smallest and the largest logit: one −1e30 and the search never arrives.

A draw may depend on V where no noise is declared: then only rows with one legal id are compared.
"""

from stabcheck.choices import appended_comparisons
from stabcheck.laws import law


@law("columns of -inf or of huge negative logits appended to a row change nothing", traits=["filters"], weight=0.5)
def test_appended(case):
    yield from appended_comparisons(case)
