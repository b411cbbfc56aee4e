"""The loss's and the gradient's reference is right, and their bounds let every correct kernel pass.

Judged by fifty digits, by torch's own loss in fp64, and by torch.autograd of a formula in fp64.
"""

import exact
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from planted import inf, nan, recipe_of, trial
from planted_losses import LOSS, loss

from stabcheck.batches import Batch
from stabcheck.bounds import Contract, summation_error
from stabcheck.devices import GPU, INTERPRETER, U
from stabcheck.expansion import materialise
from stabcheck.floats import FORMATS, FP32, by_name
from stabcheck.operations import operation
from stabcheck.strategies import recipes
from stabcheck.verdicts import Comparison, agreement

OPERATION = operation(LOSS)
POLICIES = OPERATION.default_policies()
OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"lse_square_scale": 1e-2},
    {"softcap": 30.0},
    {"softcap": 1.0},
    {"label_smoothing": 0.5, "lse_square_scale": 1e-4, "softcap": 30.0},
]


def batch_of(x, target, upstream=1.0, dtype="fp32", **options):
    x = torch.as_tensor(x).to(by_name(dtype).torch)
    target, upstream = torch.as_tensor(target).expand(len(x)), torch.as_tensor(upstream, dtype=torch.float32).expand(len(x))
    return Batch(x, {"target": target, "upstream": upstream}, options=options)


def expect(batch, dtype="fp32", output=FP32, profile=GPU, error_model="shift_first", **policies):
    return OPERATION.reference(batch, Contract(by_name(dtype), output, profile, POLICIES | policies, error_model))


def fails(got, expected):
    return agreement(Comparison(torch.as_tensor(got), expected.value, expected.bound, expected.free))


def bell(rows=20, vocab=30, seed=0, spread=5.0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def targets(rows=20, vocab=30, seed=0):
    return torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(seed))


# ---- the reference against 50 digits


def worst_share(batch, dtype="fp32", masked_smoothing="skip"):
    """Over rows that no policy rules and that are not ignored."""
    expected, worst = expect(batch, dtype, masked_smoothing=masked_smoothing), 0.0
    options = {name: v for name, v in batch.options.items() if name != "ignore_index"}
    rows = zip(batch.logits.double().tolist(), *(v.tolist() for v in batch.inputs.values()), strict=True)
    for k, (x, target, upstream) in enumerate(rows):
        if exact.sane(x) and target != batch.options.get("ignore_index", -100):
            value, grad = exact.loss(x, target, upstream, masked_smoothing=masked_smoothing, **options)
            pairs = [(value, expected["loss"], k), *((g, expected["grad"], (k, i)) for i, g in enumerate(grad))]
            worst = max(worst, *(exact.share_of_bound(v, e.value[at].item(), e.bound[at].item()) for v, e, at in pairs))
    return worst


NASTY = {
    "ties": ([5.0] * 7, 3),
    "one-ulp neighbours at 1e4": ([1e4, 1e4 + 2.0**-10, 1e4 - 2.0**-10], 2),
    "subnormal": ([2.0**-149, 0.0, -(2.0**-130)], 0),
    "largest and smallest": ([3.4028234663852886e38, -3.4028234663852886e38, 0.0], 1),
    "a common offset": ([1e8 + 8 * k for k in range(5)], 0),
    "terms below every format": ([0.0, -87.3, -88.7, -104.0, -110.0, -745.0, -1000.0], 6),
    "nearly certain": ([0.0, -20.0, -80.0, -90.0], 0),
    "masked": ([-inf, 0.0, -inf, -1.0], 3),
    "a masked target": ([-inf, 0.0, -1.0], 0),
    "one column": ([123.456], 0),
    "at the cap": ([29.9, 30.0, 300.0, -1e30], 1),
}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("masked_smoothing", ["skip", "inf"])
def test_reference_is_exact_on_nasty_rows(name, options, masked_smoothing):
    x, target = NASTY[name]
    for upstream in (1.0, -1e30, 1e-30):
        assert worst_share(batch_of([x], [target], upstream, **options), masked_smoothing=masked_smoothing) < exact.AUDITED


@pytest.mark.parametrize("dtype", FORMATS)
def test_reference_is_exact_on_drawn_rows(dtype):
    @settings(max_examples=80, derandomize=True, database=None, deadline=None)
    @given(recipes(LOSS, dtype, max_vocab=11, max_rows=8))
    def audit(drawn):
        assert worst_share(materialise(drawn), dtype) < exact.AUDITED

    audit()


def test_the_audit_sees_a_reference_that_works_in_fp32():
    batch = batch_of([[0.0, -3.0, -20.0]], 1)
    value = F.cross_entropy(batch.logits, batch.inputs["target"]).item()
    bound = expect(batch)["loss"].bound.item()
    assert exact.share_of_bound(exact.loss([0.0, -3.0, -20.0], 1)[0], value, bound) > exact.AUDITED


# ---- the reference against torch in fp64


def by_torch(batch, reduction="none", **options):
    """Loss and gradient of torch's own cross-entropy in fp64."""
    x = batch.logits.double().requires_grad_()
    value = F.cross_entropy(x, batch.inputs["target"], reduction=reduction, **options)
    upstream = batch.inputs["upstream"].double()
    value.backward(upstream if value.ndim else upstream[0])
    return value.detach(), x.grad


def assert_agrees(got, expected):
    torch.testing.assert_close(expected.value, got, rtol=1e-12, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"ignore_index": 2}, {"ignore_index": 2, "label_smoothing": 0.5}], ids=str
)
def test_it_is_torchs_own_where_torch_has_it(options, reduction):
    batch = batch_of(bell(), targets(vocab=5), torch.linspace(-2, 2, 20), reduction=reduction, **options)
    for value, expected in zip(by_torch(batch, reduction, **options), expect(batch).values(), strict=True):
        assert_agrees(value, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_masked_classes_are_torchs_own_under_its_policy(smoothing):
    x = bell()
    x[:, ::3] = -inf
    batch = batch_of(x, torch.arange(20) % 3 + 1, label_smoothing=smoothing)  # some of the targets are masked
    for value, expected in zip(by_torch(batch, label_smoothing=smoothing), expect(batch, masked_smoothing="inf").values(), strict=True):
        assert_agrees(value, expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_gradient_is_that_of_autograd(options):
    batch = batch_of(bell(), targets(), torch.linspace(-2, 2, 20), **options)
    eps, zeta, cap = (options.get(name, 0.0) for name in ("label_smoothing", "lse_square_scale", "softcap"))
    x = batch.logits.double().requires_grad_()
    y = cap * torch.tanh(x / cap) if cap else x
    value = F.cross_entropy(y, batch.inputs["target"], reduction="none", label_smoothing=eps) + zeta * torch.logsumexp(y, -1) ** 2
    value.backward(batch.inputs["upstream"].double())
    assert_agrees(value.detach(), expect(batch)["loss"])
    assert_agrees(x.grad, expect(batch)["grad"])


def test_the_gradient_of_masked_classes_that_take_no_part_is_that_of_autograd():
    x = bell()
    x[:, ::3] = -inf
    batch = batch_of(x, 1, label_smoothing=0.3)
    wide = x.double().requires_grad_()
    logp = torch.log_softmax(wide, -1)
    smooth = 0.3 / 30 * torch.where(x > -inf, logp, 0.0).sum(-1)
    (-(0.7 * logp[:, 1] + smooth)).sum().backward()
    assert_agrees(wide.grad.nan_to_num(0.0), expect(batch)["grad"])


# ---- ignored rows and reductions


@pytest.mark.parametrize("row", [[0.0, 1.0, 2.0], [nan, 0.0, 0.0], [-inf, -inf, -inf], [inf, 0.0, 0.0]], ids=str)
@pytest.mark.parametrize("index", [-100, 0, 2])
def test_an_ignored_row_is_exactly_0_whatever_it_holds(row, index):
    for options in OPTIONS:
        expected = expect(batch_of([row, [0.0, 1.0, 2.0]], [index, 1], ignore_index=index, **options))
        assert all(e.value[0].eq(0).all() and e.bound[0].eq(0).all() for e in expected.values())
        assert expected["loss"].value[1] > 0


def test_an_ignored_index_in_range_ignores_rows_of_that_target_and_no_other():
    value = expect(batch_of([[0.0, 0.0, 0.0]] * 3, [0, 1, 2], ignore_index=2))["loss"].value
    assert (value == 0).tolist() == [False, False, True]


def test_minus_100_is_out_of_range_where_another_index_is_ignored():
    assert expect(batch_of([[0.0, 0.0]], [-100], ignore_index=0))["loss"].free.tolist() == [True]


@pytest.mark.parametrize(("reduction", "value"), [("mean", nan), ("sum", 0.0)])
def test_with_every_row_ignored_the_mean_is_nan_the_sum_0_and_the_gradients_0_as_torch_has_it(reduction, value):
    batch = batch_of([[0.0, 1.0]] * 2, -100, reduction=reduction)
    expected = expect(batch)
    assert str(expected["loss"].value.item()) == str(value)
    assert (expected["grad"].value == 0).all() and (expected["grad"].bound == 0).all()
    got, grad = by_torch(batch, reduction)
    assert str(got.item()) == str(value)
    assert (grad == 0).all()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_reduction_has_one_bound_that_covers_those_of_its_rows(reduction):
    rows = expect(batch_of(bell(), targets()))["loss"].bound
    one = expect(batch_of(bell(), targets(), reduction=reduction))["loss"]
    assert one.value.shape == one.bound.shape == ()
    assert one.bound >= (rows.sum() if reduction == "sum" else rows.mean())


def test_an_infinite_loss_makes_the_reduction_infinite_and_a_nan_one_nan():
    masked, undefined = [-inf, 0.0], [nan, 0.0]
    assert expect(batch_of([masked, [0.0, 0.0]], 0, reduction="mean"))["loss"].value == inf
    assert expect(batch_of([masked, undefined], 0, reduction="sum"))["loss"].value.isnan()


def test_empty_batches_have_references():
    for reduction, shape in (("none", (0,)), ("sum", ()), ("mean", ())):
        expected = expect(batch_of(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), reduction=reduction))
        assert (expected["loss"].value.shape, expected["grad"].value.shape) == (shape, (0, 3))


# ---- policies and rows without a finite maximum


@pytest.mark.parametrize("bad", [-1, 2, 100])
def test_a_target_out_of_range_is_free_by_default_and_nan_if_declared(bad):
    batch = batch_of([[0.0, 1.0]] * 2, [0, bad])
    assert [e.free.reshape(2, -1).all(-1).tolist() for e in expect(batch).values()] == [[False, True]] * 2
    declared = expect(batch, bad_target="nan")
    assert [e.value.reshape(2, -1).isnan().all(-1).tolist() for e in declared.values()] == [[False, True]] * 2
    assert not any(e.free is not None and e.free.any() for e in declared.values())


def test_a_masked_class_makes_a_smoothed_loss_infinite_only_where_declared():
    batch = batch_of([[-inf, 0.0, 1.0]], 1, label_smoothing=0.1)
    assert expect(batch)["loss"].value.isfinite().all()
    declared = expect(batch, masked_smoothing="inf")["loss"]
    assert (declared.value.tolist(), declared.bound.tolist()) == ([inf], [0.0])


@pytest.mark.parametrize("row", [[nan, 0.0], [inf, 0.0], [-inf, -inf]], ids=str)
def test_a_row_without_a_finite_maximum_is_nan_and_no_other(row):
    for e in expect(batch_of([row, [0.0, 0.0]], 0)).values():
        assert e.value.reshape(2, -1).isnan().all(-1).tolist() == [True, False]


def test_a_softcap_makes_infinities_ordinary():
    expected = expect(batch_of([[inf, 0.0, -inf]], 1, softcap=2.0))
    assert expected["loss"].value.item() == pytest.approx(
        F.cross_entropy(torch.tensor([[2.0, 0.0, -2.0]]).double(), torch.tensor([1])).item()
    )
    assert (expected["grad"].value[0, [0, 2]] == 0).all()


def test_a_masked_target_is_an_infinite_loss_with_a_finite_gradient():
    expected = expect(batch_of([[-inf, 0.0, 0.0]], 0))
    assert expected["loss"].value.tolist() == [inf]
    assert expected["grad"].value.tolist() == [[-1.0, 0.5, 0.5]]


# ---- the bound


def test_it_is_0_where_the_value_is_exact():
    expected = expect(batch_of([[-inf, 0.0, 1.0], [0.0, 0.0, 0.0]], [1, 1], [1.0, 0.0]))
    assert expected["grad"].bound[0].tolist()[0] == 0.0
    assert expected["grad"].bound[0, 1:].min() > 0
    assert (expected["grad"].bound[1] == 0).all()  # upstream 0
    assert expect(batch_of([[-inf, 0.0]], 0))["loss"].bound.item() == 0.0


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=str)
def test_the_bound_does_not_grow_with_a_common_offset(options):
    x = torch.arange(8.0)[None] * 16  # fp32 has steps of 16 at 2^27
    near, far = expect(batch_of(x, 2, **options)), expect(batch_of(x + 2.0**27, 2, **options))
    for name in near:
        torch.testing.assert_close(far[name].value, near[name].value, rtol=1e-12, atol=0)
        torch.testing.assert_close(far[name].bound, near[name].bound, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("options", "error_model"), [({}, "unshifted"), ({"lse_square_scale": 1e-2}, "shift_first")], ids=str)
def test_it_grows_with_one_where_lse_itself_is_formed(options, error_model):
    x = torch.arange(8.0)[None] * 16
    near, far = (expect(batch_of(y, 2, **options), error_model=error_model)["loss"].bound for y in (x, x + 2.0**27))
    assert far > 1e5 * near


@pytest.mark.parametrize("error_model", list(OPERATION.error_models))
@pytest.mark.parametrize("dtype", FORMATS)
def test_the_bound_is_a_number_wherever_the_value_is(dtype, error_model):
    @settings(max_examples=150, derandomize=True, database=None, deadline=None)
    @given(recipes(LOSS, dtype, max_vocab=64, max_rows=64))
    def examine(drawn):
        for e in expect(materialise(drawn), dtype, error_model=error_model).values():
            assert (e.bound[~e.value.isnan()] >= 0).all()

    examine()


@pytest.mark.parametrize("name", ["loss", "grad"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_error_of_twice_the_bound_fails_and_one_within_it_does_not(name, options):
    expected = expect(batch_of(bell(), targets(), **options))[name]
    for sign in (1, -1):
        assert fails(expected.value + sign * 2 * expected.bound, expected).all()
        assert not fails(expected.value + sign * 0.99 * expected.bound, expected).any()


@pytest.mark.parametrize("columns", [2, 40, 3000])
@pytest.mark.parametrize("profile", [GPU, INTERPRETER], ids=lambda p: p.name)
def test_a_kernel_that_errs_as_much_as_documented_in_every_step_keeps_the_bounds_and_uses_most_of_them(columns, profile):
    """For the loss every term too large; for the gradient of column 1 its own term too large and the others too small."""
    x = bell(1, columns, 1)
    batch, height = batch_of(x, 0), summation_error(columns, Contract(FP32, FP32, profile))
    z = x.double() - x.double().amax()
    kappa = (1 + profile.log2e) * U * z.abs() + profile.exp * U
    expected = expect(batch, profile=profile)
    log_d = ((z + kappa).exp().sum() * (1 + height)).log() * (1 + profile.log * U)
    value = (log_d - z[0, 0] + (1 + profile.log2e) * U * z[0, 0].abs()) * (1 + U)
    assert 0.4 < ((value - expected["loss"].value).abs() / expected["loss"].bound).item() < 1
    sign = torch.full((columns,), -1.0).double()
    sign[1] = 1.0
    e = (z + sign * kappa).exp()
    p = e / (e.sum() * (1 - height)) * (1 + (profile.divide + 1) * U)
    grad = expected["grad"]
    assert 0.3 < ((p * (1 + U) - grad.value).abs() / grad.bound)[0, 1].item() < 1


def test_a_gradient_that_may_overflow_its_format_may_be_infinite_but_not_nan():
    expected = expect(batch_of([[0.0, 0.0]], 0, 1e30, "fp16"), "fp16")["grad"]
    assert not fails([[-inf, inf]], expected).any()
    assert fails([[nan, nan]], expected).all()


def test_near_certainty_the_bound_of_the_targets_gradient_is_relative_to_what_is_left():
    """p_t − 1 = −0.007 must not be rounded as 1 is: bf16 keeps it to 2^-8 of itself."""
    expected = expect(batch_of([[5.0, 0.0]], 0, dtype="bf16"), "bf16")["grad"]
    assert expected.bound[0, 0] < 2.0**-7 * abs(expected.value[0, 0])
    assert fails([[0.0, 0.0]], expected).all()


# ---- the upstream gradient, where the loss is narrow


@pytest.mark.parametrize(("dtype", "upstream"), [("bf16", 1.004), ("fp16", 1.00048), ("fp16", 65536.0)])
def test_a_narrow_loss_is_given_a_narrow_upstream_and_its_gradient_is_judged_by_that(dtype, upstream):
    made = recipe_of(LOSS, [0.0] * 11, dtype=dtype, inputs={"target": 0, "upstream": upstream})
    assert trial(loss(input_dtype=True), "accuracy", dtype, LOSS, output="input").examine(made).ok
    batch = materialise(made)
    _, got = OPERATION.call(loss(input_dtype=True), *batch.args)
    assert not fails(got, expect(batch, dtype, by_name(dtype))["grad"]).any()  # a GPU's bound, half as wide for bf16


# ---- scaling first


def test_a_row_whose_logits_overflow_once_scaled_by_log2_e_is_free_when_scaling_comes_first():
    batch = batch_of([[3e38, 0.0], [2e38, 0.0], [inf, 0.0]], 0)
    assert expect(batch, error_model="scale_first")["loss"].free.tolist() == [True, False, False]
    got = {model: fails([nan, nan, nan], expect(batch, error_model=model)["loss"]).tolist() for model in ("unshifted", "scale_first")}
    assert got == {"unshifted": [True, True, False], "scale_first": [False, True, False]}


def test_what_an_unshifted_kernel_need_not_get_right_one_that_scales_first_need_not_either():
    batch = batch_of([[2e38, 0.0]], 0, label_smoothing=0.1)  # the sum over both classes overflows
    assert [expect(batch, error_model=model)["loss"].free.tolist() for model in ("unshifted", "scale_first")] == [[True], [True]]
