"""Accuracy: |got_i − exact_i| ≤ bound_i for every element i, exact_i in fp64 from the very bits the kernel was given.

The bound is derived from the data and the formats (`stabcheck.bounds`), so it is tight where softmax is well-conditioned and lets go
where it is not. Kernels break it by dividing by T before subtracting the maximum (SGLang #20501), by narrow accumulators, by finite
stand-ins for -inf.
"""

from stabcheck.laws import law


@law("every element is within its derived bound of the fp64 reference", traits=["accurate"], weight=12)
def test_accuracy(case):
    yield case.against_reference(case.run())
