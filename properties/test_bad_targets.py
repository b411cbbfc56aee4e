"""Bad targets: a target that is neither a column nor the ignored index raises, or makes its row NaN if the kernel declares that. It never
reads another row's logits, or memory that is nobody's, and the other rows keep their bits.

A kernel that traps on the device ends the session; so on a GPU the law runs only where the kernel declares the policy. Kernels break it by
using the target as an offset unseen (CE5: target = V is the first logit of the next row).
"""

from stabcheck.guards import run_with_bad_target
from stabcheck.laws import law


@law(
    "a target out of range raises, or makes its row NaN where that is declared",
    traits=["targets"],
    promised="bad_target",
    row_local=False,
    weight=0.5,
)
def test_bad_targets(case):
    if case.batch.logits.numel():
        for bad in (case.recipe.vocab, -1, case.recipe.vocab + 1, -2):
            yield from run_with_bad_target(case, bad)
