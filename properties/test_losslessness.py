"""Losslessness: with drafts and coins from the kernel's own stream, tokens at each position of a chain follow the target's probabilities.

That is what speculative sampling promises (Leviathan et al., 2023, app. A.1), whatever the drafts' probabilities are. Kernels break it by
drafts and coins that share their noise, by a residual that is softmaxed instead of normalised.
"""

from stabcheck.chains import losslessness
from stabcheck.laws import law


@law(
    "tokens of verified chains have the target's probabilities at each position",
    traits=["verifies"],
    requires="stream",
    gpu=True,
    row_local=False,
    max_vocab=16385,
    weight=0.4,
)
def test_losslessness(case):
    yield from losslessness(case)
