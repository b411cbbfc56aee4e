"""Exact noise: the id drawn is argmax_i z_i − log E_i over the tokens kept, E being the exponential variates the kernel declares.

With the noise recomputed in fp64 a draw is no matter of chance: score(id) ≥ best score − the derived errors of the two. The columns are
permuted as well, with the noise that then belongs to them. Kernels break it by noise that depends on the code path, by resolving the drawn
rank back to an id through its value (ties collapse on the lowest id), by rejection that ends in an argmax.
"""

from stabcheck.laws import law
from stabcheck.variations import random_order


@law("the id drawn is the argmax of scores with the kernel's own noise, recomputed in fp64", traits=["draws"], requires="noise", weight=6)
def test_exact_noise(case):
    yield case.against_reference(case.run(), what="id with the argmax of scores")
    permuted, _ = case.operation.take_columns(case.batch, random_order(case, case.recipe.vocab))
    yield case.against_reference(case.run(permuted), permuted, what="columns permuted, noise relabelled")
