"""Route equivalence: every code path a dispatcher may take gives the same answer, within the bounds.

Users see a route change as soon as their batch grows. Kernels break it when one path lacks what another has: a mask, a guard, a policy;
when the noise of a draw depends on the path (TokenSpeed #280).
"""

from stabcheck.draws import same_draws
from stabcheck.errors import UnsupportedInput
from stabcheck.laws import law


@law("every code path gives the reference's answer within the bounds, and draws the same ids", requires="routes")
def test_routes(case):
    for name, function in case.kernel.routes.items():
        try:
            got = case.run(function=function)
        except UnsupportedInput:  # a path for small vocabularies only, say
            continue
        yield case.against_reference(got, what=f"route {name}")
        if "draws" in case.operation.traits and case.kernel.noise is None:
            yield from same_draws(case, function, what=f"route {name}")
