"""Cross-entropy mutants: `cross_entropy_skeleton` with one mistake each."""

from functools import partial

import triton
import triton.language as tl

from stabcheck.kernels.mutants.cross_entropy_skeleton import cross_entropy, losses_of, reduced
from stabcheck.kernels.mutants.skeleton import TILE, mutant
from stabcheck.kernels.mutants.softmax_tiles import online

SUPPORTED = {"policies": {"bad_target": "error"}, "options": {"lse_square_scale": (0.0,), "softcap": (0.0,)}}
mutant = partial(mutant, operation="cross_entropy", **SUPPORTED)


@triton.jit
def _from_lse(m, log_d, x_t):
    """lse - x_t, where lse is rounded relative to m"""
    return (m + log_d) - x_t


@mutant("CE1", killed_by=("shift_invariance",), vocab=2)
def subtracts_from_the_rounded_lse(logits, target, **options):
    """Forms lse - x_t instead of log d - (x_t - m): under a common offset of 1e8 lse has no bit left for log d (PyTorch #11752)."""
    return cross_entropy(logits, target, **options, slots={"DISTANCE": _from_lse})


@mutant("CE2", killed_by=("finiteness",), vocab=TILE + 1)
def online_without_guard(logits, target, **options):
    """Online, without a guard: a first chunk that is all -inf gives exp(-inf - -inf) = NaN (online kernels of many projects)."""
    return cross_entropy(logits, target, **options, slots={"STATISTICS": online})


@mutant("CE3", killed_by=("gradients", "ignored_rows"))
def ignored_rows_get_a_gradient(logits, target, **options):
    """Sets the loss of ignored rows to 0 and writes their p as a gradient all the same (the cross-entropy set)."""
    return cross_entropy(logits, target, **options, backward_slots={"IGNORES": False})


@mutant("CE4", killed_by=("reductions",), rows=2)
def divides_by_all_rows(logits, target, *, reduction="none", **options):
    """Divides the mean by the number of all rows, ignored ones too (the cross-entropy set)."""
    return reduced(cross_entropy(logits, target, **options), reduction, len(target))


@mutant("CE5", killed_by=("bad_targets",))
def trusts_the_target(logits, target, *, reduction="none", ignore_index=-100, **options):
    """Checks no range: target = V reads the first logit of the next row (the cross-entropy set)."""
    return reduced(losses_of(logits, target, ignore_index=ignore_index, **options), reduction, (target != ignore_index).sum())


@triton.jit
def _to_bf16(pulled):
    """With bf16's 8 bits."""
    return pulled.to(tl.bfloat16).to(tl.float32)


@mutant("CE6", killed_by=("gradients",), vocab=2, dtypes=["bf16"])
def rounds_before_it_subtracts(logits, target, **options):
    """Rounds the gradient to bf16 before it subtracts 1 at the target: p = 0.999 becomes 1, and the gradient 0 (the cross-entropy set)."""
    return cross_entropy(logits, target, **options, backward_slots={"ROUNDED": _to_bf16})


@triton.jit
def _of_every_class(x, z, inside):
    """-z of all classes, infinite for a masked one"""
    return tl.where(inside, -z, 0.0)


@mutant("CE7", killed_by=("finiteness",), vocab=2)
def smooths_masked_classes(logits, target, **options):
    """Gives masked classes their share of the smoothing: ε/V times infinity, in silence (the cross-entropy set)."""
    return cross_entropy(logits, target, **options, slots={"FAR": _of_every_class})
