"""Route equivalence: every code path a dispatcher may take gives the same answer, within the bounds.

Users see a route change as soon as their batch grows. Kernels break it when one path lacks what another has: a mask, a guard, a policy.
"""

from stabcheck.errors import UnsupportedInput
from stabcheck.laws import law


@law("every code path gives the reference's answer within the bounds", requires="routes")
def test_routes(case):
    for name, function in case.kernel.routes.items():
        try:
            yield case.against_reference(case.run(function=function), what=f"route {name}")
        except UnsupportedInput:  # a path for small vocabularies only, say
            continue
