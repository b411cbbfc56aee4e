"""Ignored rows: a row whose target is ignore_index has loss 0 and gradient 0, exactly and whatever it holds, and does not touch others.

Kernels break it by giving such rows a gradient (their p_i, say), by multiplying a NaN row with 0, by reading logits[ignore_index].
"""

import torch

from stabcheck.laws import law
from stabcheck.operations.base import IGNORED, of_rows
from stabcheck.variations import relaid


@law("an ignored row has loss and gradient exactly 0 and does not touch the others", traits=["ignored"], row_local=False)
def test_ignored_rows(case):
    batch, got = case.batch, case.run()
    for parity in (0, 1):
        target = batch.inputs["target"].clone()
        target[parity::2] = batch.options.get("ignore_index", IGNORED)
        variant = relaid(case, case.recipe.layout).with_inputs(target=target)
        variant.logits[parity::4] = torch.nan
        results = case.run(variant)
        ignored, others = of_rows(results, slice(parity, None, 2)), slice(1 - parity, None, 2)
        zeros = {name: torch.zeros_like(values) for name, values in ignored.items()}
        yield case.same_bits(ignored, zeros, what="ignored rows, every other of them NaN", aligned=False)
        yield case.same_bits(of_rows(results, others), of_rows(got, others), what="other rows with what they were", aligned=False)
