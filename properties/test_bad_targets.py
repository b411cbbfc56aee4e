"""Bad targets: a target that is neither a column nor the ignored index raises, or makes its row NaN if the kernel declares that. It never
reads another row's logits, or memory that is nobody's, and the other rows keep their bits.

A kernel that traps on the device ends the session; so on a GPU the law runs only where the kernel declares the policy. Kernels break it by
using the target as an offset unseen (CE5: target = V is the first logit of the next row), by narrowing it to 32 bits, by taking -100 for
ignored whatever the ignored index is.
"""

from stabcheck.guards import run_with_bad_target
from stabcheck.laws import law
from stabcheck.operations.base import IGNORED
from stabcheck.verdicts import summarise


@law(
    "a target out of range raises, or makes its row NaN where that is declared",
    traits=["targets"],
    promised="bad_target",
    row_local=False,
    weight=0.5,
)
def test_bad_targets(case):
    if not case.batch.logits.numel():
        return
    near = [c for bad in (case.recipe.vocab, -1, case.recipe.vocab + 1, -2, IGNORED) for c in run_with_bad_target(case, bad)]
    yield near
    if not any(summary.failed for summary in summarise(near)):  # who uses a near one as an offset must not be given a far one
        yield from (run_with_bad_target(case, bad) for bad in (case.recipe.vocab + 2**32, 2**32, -(2**31)))
