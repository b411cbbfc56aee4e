"""Softmaxes in plain torch, one of them right and each of the others wrong in one way, and ways to put laws to kernels.

`planted_losses` has the like for the other operations.
"""

from itertools import cycle

import torch
from hypothesis import HealthCheck, Phase, given, settings

from stabcheck.devices import describe
from stabcheck.findings import Broken
from stabcheck.laws import all_laws
from stabcheck.recipe import Background, Layout, Recipe, Row
from stabcheck.registry import make_kernel
from stabcheck.strategies import drawn, space_for
from stabcheck.trial import Trial

inf, nan = float("inf"), float("nan")
LAWS = all_laws()
CPU = describe("cpu")


def right(logits, temperature):
    z = (logits.float() - logits.float().amax(-1, keepdim=True)) / temperature[:, None]
    return torch.softmax(z.double(), -1).to(logits.dtype)  # in fp32, torch adds V/16 terms one after another on a CPU: outside the bound


def right_in_place(logits, temperature):
    return logits.copy_(right(logits, temperature))


def overflows(logits, temperature):
    e = torch.exp(logits.float() / temperature[:, None])
    return (e / e.sum(-1, keepdim=True)).to(logits.dtype)


def one_percent_flatter(logits, temperature):
    return (0.99 * right(logits, temperature).float() + 0.01 / logits.shape[1]).to(logits.dtype)


def five_percent_too_much(logits, temperature):
    return right(logits, temperature) * 1.05


def reversed_rows(logits, temperature):
    return right(logits, temperature).flip(-1)


def weighs_the_first_column_twice(logits, temperature):
    p = right(logits, temperature)
    p[:, 0] *= 2
    return p / p.sum(-1, keepdim=True)


def clamps_from_below(logits, temperature):
    return right(logits.clamp(min=-1e4), temperature)


def shares_the_maximum(logits, temperature):
    z = (logits.float() - logits.max().float()) / temperature[:, None]  # of all rows
    return torch.softmax(z.double(), -1).to(logits.dtype)


SHAKE = cycle((1.0, 1.0, 1.01))


def shaky(logits, temperature):
    return right(logits, temperature) * next(SHAKE)


def ignores_strides(logits, temperature):
    return right(logits.as_strided(logits.shape, (logits.shape[1], 1)), temperature)


def scribbles_on_its_input(logits, temperature):
    p = right(logits, temperature)
    logits[:, -1:] = 0
    return p


def forgets_the_last_column(logits, temperature):
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    out[:, :-1] = right(logits, temperature)[:, :-1]
    return out


def softmaxes_twice_in_place(logits, temperature):
    return right_in_place(right_in_place(logits, temperature), temperature)


SOFTMAX = "temperature_softmax"


def kernel(function, operation=SOFTMAX, **declared):
    return make_kernel(operation, function, **declared)


def trial(function, law="accuracy", dtype="fp32", operation=SOFTMAX, **declared):
    """A trial of a function on the CPU."""
    return Trial(kernel(function, operation, **declared), LAWS[law], dtype, CPU)


def recipe(*rows, temperature=1.0, dtype="fp32", **more):
    """A recipe of literal rows of a softmax, given as lists of logits; one temperature for all, or one each."""
    return recipe_of(SOFTMAX, *rows, dtype=dtype, inputs={"temperature": temperature}, **more)


def recipe_of(operation, *rows, dtype="fp32", inputs=(), options=(), **more):
    """A recipe of literal rows of any operation; each input is one value for all rows, or a list of one each."""
    each = {name: v if isinstance(v, list) else [v] * len(rows) for name, v in dict(inputs).items()}
    literal = [
        Row(Background("literal", tuple(map(float, row)), (1,) * len(row)), inputs=tuple((name, v[k]) for name, v in each.items()))
        for k, row in enumerate(rows)
    ]
    return Recipe(operation, dtype, len(rows[0]), tuple(literal), options=tuple(dict(options).items()), **more)


def logits_of(recipe):
    """The rows of a recipe as lists, whatever its backgrounds are."""
    from stabcheck.expansion import materialise

    return materialise(recipe).logits.tolist()


def finding_of(examined, examples=100, *, shrunk=True, max_rows=24, max_elements=1 << 13, max_vocab=4097):
    """The first finding Hypothesis makes with a trial, shrunk by it or as it was drawn, or None."""
    limits = {"max_rows": max_rows, "max_elements": max_elements, "max_vocab": max_vocab}
    space = space_for(examined.kernel, examined.dtype, **limits, fixed_options=examined.law.fixed_options(examined.kernel))

    @settings(max_examples=examples, derandomize=True, database=None, deadline=None, report_multiple_bugs=False,
              suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink][: 1 + shrunk])  # fmt: skip
    @given(drawn(space))
    def put(recipe):
        examined(recipe)

    try:
        put()
    except Broken as broken:
        return broken.finding
    return None


def holds(kernel, law, device, examples):
    """Whether a law finds nothing in a kernel, in any of its dtypes, on a few small batches, and compares something."""
    trials = [Trial(kernel, law, dtype, describe(device)) for dtype in kernel.dtypes if dtype in law.dtypes]
    small = {"max_rows": 8, "max_elements": 1 << 11, "max_vocab": 400}
    return all(finding_of(t, examples, shrunk=False, **small) is None and t.tally.total.compared for t in trials)


PADDED = Layout(pad=1)
