"""The guards see every stray write and read that a kernel can make, and nothing else."""

import pytest
import torch
from planted import CPU, kernel, nan, recipe, recipe_of, right
from planted_losses import LOSS, forgets_its_last_column, loss, same, writes_past_its_end

from stabcheck.cases import Case, KernelFault
from stabcheck.errors import UnsupportedInput
from stabcheck.guards import MARGIN, POISON, GuardAllocations, guard, run_guarded, run_with_bad_target
from stabcheck.recipe import Layout

MADE = recipe([0.0, 1.0, 2.0], [3.0, 4.0, 5.0])


def watch(function, made=MADE, **declared):
    return run_guarded(Case(kernel(function, **declared), CPU, made))


def faults(watched):
    maps = {"overruns": watched.overruns, "unwritten": watched.unwritten["probs"], "changed": watched.changed}
    return {name for name, found in maps.items() if found.any()}


def beyond(tensor, offset):
    """One element of the memory around a tensor."""
    return tensor.as_strided((1,), (1,), tensor.storage_offset() + offset)


# ---- a kernel is judged


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layout", [Layout(), Layout(3, 2, 5)], ids=str)
def test_a_right_kernel_has_no_fault(dtype, layout):
    assert faults(watch(right, MADE.with_(dtype=dtype, layout=layout))) == set()


def test_an_empty_batch_has_no_fault():
    assert faults(watch(right, MADE.with_(siblings=0))) == set()


@pytest.mark.parametrize("offset", [-1, -MARGIN, 6, 5 + MARGIN], ids=["just before", "far before", "just after", "far after"])
def test_a_write_around_the_input_is_seen(offset):
    def kernel(x, t):
        p = right(x, t)
        beyond(x, offset).fill_(0.0)
        return p

    assert faults(watch(kernel)) == {"overruns"}


@pytest.mark.parametrize("offset", [-1, 6], ids=["before", "after"])
def test_a_write_around_the_output_is_seen(offset):
    def kernel(x, t):
        out = torch.empty_like(x)
        out.copy_(right(x, t))
        beyond(out, offset).fill_(0.0)
        return out

    assert faults(watch(kernel)) == {"overruns"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64, torch.bfloat16, torch.uint8], ids=str)
def test_a_write_around_a_scratch_buffer_is_seen(dtype):
    def kernel(x, t):
        scratch = torch.empty(7, dtype=dtype)
        beyond(scratch, 7).fill_(1)
        return right(x, t)

    assert faults(watch(kernel)) == {"overruns"}


def test_a_write_of_nan_is_seen_too():
    def kernel(x, t):
        beyond(x, 6).fill_(nan)
        return right(x, t)

    assert faults(watch(kernel)) == {"overruns"}


def test_a_write_around_the_temperature_is_seen():
    def kernel(x, t):
        beyond(t, 2).fill_(1.0)
        return right(x, t)

    assert faults(watch(kernel)) == {"overruns"}


def test_an_output_that_is_not_written_is_seen_where_it_is_not():
    def kernel(x, t):
        out = torch.empty_like(x)
        out[:, :2] = right(x, t)[:, :2]
        return out

    watched = watch(kernel)
    assert faults(watched) == {"unwritten"}
    assert watched.unwritten["probs"].tolist() == [[False, False, True]] * 2


def test_a_nan_that_a_kernel_computed_is_written():
    assert faults(watch(lambda x, t: right(x, t) * nan)) == set()


@pytest.mark.parametrize(
    "change", [lambda x, t: x.add_(1), lambda x, t: t.mul_(2), lambda x, t: x.neg_()], ids=["logits", "temperature", "sign"]
)
def test_a_changed_input_is_seen(change):
    def kernel(x, t):
        p = right(x, t)
        change(x, t)
        return p

    assert faults(watch(kernel)) == {"changed"}


def test_an_input_changed_and_changed_back_is_unchanged():
    def kernel(x, t):
        p = right(x.add_(1), t)
        x.sub_(1)
        return p

    assert faults(watch(kernel)) == set()


def test_unwritten_scratch_memory_poisons_the_result():
    """What a kernel reads without having written it must show, not be 0 by luck."""
    assert watch(lambda x, t: right(x, t) + torch.empty(1)).results["probs"].isnan().all()


def test_memory_that_is_asked_to_be_zero_is_zero():
    def kernel(x, t):
        for made in (torch.zeros(3), torch.zeros_like(x), x.new_zeros(3)):
            assert (made == 0).all()
        return right(x, t)

    assert faults(watch(kernel)) == set()


def test_reads_between_padded_rows_give_nan():
    watched = watch(lambda x, t: right(x.as_strided((2, 3), (3, 1), x.storage_offset()), t), MADE.with_(layout=Layout(pad=2)))
    assert watched.results["probs"].isnan().any()


def test_the_batch_itself_stays_as_it_was():
    case = Case(kernel(lambda x, t: right(x.add_(1), t)), CPU, MADE)
    before = case.batch.digest()
    run_guarded(case)
    assert case.batch.digest() == before


# ---- a backward pass is judged too

LOSSES = recipe_of(LOSS, [0.0, 1.0, 2.0], [3.0, 4.0, 5.0], inputs={"target": [0, 2]})


def watch_gradient(of_grad):
    """A guarded run of a loss whose gradient is changed."""
    return run_guarded(Case(kernel(loss(of_grad=of_grad), LOSS), CPU, LOSSES))


def gradient_faults(watched):
    unwritten = {name: found for name, found in watched.unwritten.items() if found.any()}
    return {"overruns": watched.overruns.any().item(), "changed": watched.changed.any().item(), **unwritten}


NONE = {"overruns": False, "changed": False}


def test_a_right_backward_pass_has_no_fault():
    assert gradient_faults(watch_gradient(same)) == NONE


def test_a_backward_pass_that_writes_outside_its_buffer_is_seen():
    assert gradient_faults(watch_gradient(writes_past_its_end)) == NONE | {"overruns": True}


def test_a_part_of_the_gradient_that_is_not_written_is_seen_where_it_is_not():
    found = gradient_faults(watch_gradient(forgets_its_last_column))
    assert found.pop("grad").tolist() == [[False, False, True]] * 2
    assert found == NONE


def test_unwritten_scratch_memory_of_a_backward_pass_poisons_the_gradient():
    assert watch_gradient(lambda grad, q: grad + torch.empty(1)).results["grad"].isnan().all()


def test_a_backward_pass_runs_in_the_thread_that_is_watched():
    """autograd gives those of a GPU to a thread of their own, in which no mode is on, unless it is told not to."""
    seen = []
    watch_gradient(lambda grad, q: seen.append(torch._C._is_multithreading_enabled()) or grad)
    assert (seen, torch._C._is_multithreading_enabled()) == ([False], True)


# ---- a target out of range


def test_the_ignored_index_is_no_bad_target():
    made = LOSSES.with_(options=(("ignore_index", 0),))
    assert run_with_bad_target(Case(kernel(loss(), LOSS), CPU, made), 0) == []


def test_a_kernel_that_refuses_is_not_said_to_raise():
    def refuses(logits, target, **options):
        raise UnsupportedInput("not today")

    with pytest.raises(UnsupportedInput):
        run_with_bad_target(Case(kernel(refuses, LOSS), CPU, LOSSES), 3)


def test_a_target_far_out_reads_poison_and_no_memory_of_others():
    """Two rows of three: V + 1 from the second row lies past the end, and −2 from the first before the beginning."""
    seen = []

    def reads(logits, target, **options):
        row = int(((target < 0) | (target > 2)).int().argmax())
        seen.append(beyond(logits, row * logits.stride(0) + int(target[row])).item())
        return loss(checked=False)(logits, target, **options)

    made = LOSSES.with_(options=())
    for seed, bad in ((0, -2), (1, 4)):
        with pytest.raises(KernelFault, match=f"target = {bad} in row {seed}, V = 3 raised no error"):
            run_with_bad_target(Case(kernel(reads, LOSS), CPU, made.with_(seed=seed)), bad)
    assert [str(value) for value in seen[1::3]] == ["nan", "nan"]


# ---- a guarded tensor


@pytest.mark.parametrize(
    ("shape", "stride"), [((2, 3), (3, 1)), ((2, 3), (10, 2)), ((4,), (1,)), ((0, 3), (3, 1)), ((2, 3), (0, 1))], ids=str
)
def test_a_guarded_tensor_has_its_shape_and_margins_on_both_sides(shape, stride):
    made = guard(shape, stride, torch.float32, "cpu")
    assert (tuple(made.inner.shape), made.inner.stride()) == (shape, stride)
    assert made.inner.storage_offset() == MARGIN
    made.inner.fill_(0.0)
    assert not made.overrun().any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_poison_is_a_nan_that_arithmetic_does_not_make(dtype):
    made = guard((4,), (1,), dtype, "cpu").inner
    assert made.isnan().all()
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    zero = torch.zeros(4, dtype=dtype)
    assert not ((zero / zero).view(bits) == POISON[dtype.itemsize]).any()


def test_every_way_to_allocate_is_guarded():
    x = torch.ones(2, 3)
    with GuardAllocations() as allocations:
        made = [
            torch.empty(2, 3),
            torch.empty_like(x),
            x.new_empty(2, 3),
            torch.empty_strided((2, 3), (3, 1)),
            x.new_empty_strided((2, 3), (3, 1)),
        ]
    assert len(allocations.made) == len(made)
    assert all(tensor.isnan().all() for tensor in made)


def test_outside_nothing_is_guarded():
    with GuardAllocations() as allocations:
        pass
    torch.empty(3)
    assert allocations.made == []
