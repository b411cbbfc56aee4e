"""Declaring a kernel costs its callers nothing, and a wrong declaration is told where it stands."""

import pytest
from planted import right

import stabcheck
from stabcheck import registry
from stabcheck.errors import UsageError
from stabcheck.registry import Kernel, make_kernel, registered


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})


def test_the_decorator_returns_the_function_itself():
    def function(x, t):
        return x

    assert stabcheck.kernel("temperature_softmax")(function) is function


def test_a_registered_kernel_is_found_in_its_module_only():
    stabcheck.kernel("temperature_softmax", name="mine")(right)
    assert [k.name for k in registered()] == ["mine"]
    assert [k.name for k in registered(["planted"])] == ["mine"]
    assert registered(["elsewhere"]) == []


def test_registering_again_replaces():
    """A module imported a second time, as in a notebook, must not leave its old kernels behind."""
    for dtypes in (["fp32"], ["bf16"]):
        stabcheck.kernel("temperature_softmax", dtypes=dtypes)(right)
    assert [k.dtypes for k in registered()] == [("bf16",)]


def test_a_kernel_says_what_it_is_and_where():
    kernel = make_kernel("temperature_softmax", right)
    assert (kernel.id, kernel.target) == ("temperature_softmax[right]", "planted:right")
    assert kernel.dtypes == ("fp32", "bf16", "fp16")


def test_a_callable_without_a_name_gets_one():
    from functools import partial

    assert make_kernel("temperature_softmax", partial(right)).target


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"dtypes": ["fp64"]}, r"unknown dtype 'fp64'; use one of fp32, bf16, fp16"),
        ({"dtypes": "fp32"}, r"unknown dtype 'f'|dtypes"),
        ({"dtypes": []}, r"dtype"),
        ({"error_model": "scaled"}, r"unknown error_model 'scaled'; use one of shift_first, scale_first"),
        ({"output": "bf16"}, r"unknown output 'bf16'; use 'input' or 'fp32'"),
        ({"inplace": right}, r"a kernel has no field 'inplace'; it has .*in_place"),
        ({"policies": {"empty_rows": "zeros"}}, r"empty_rows"),
        ({"policies": {"empty_row": "zero"}}, r"'zero'"),
        ({"tile": 0}, r"tile"),
        ({"blocks": ()}, r"blocks"),
        ({"in_place": "yes"}, r"in_place"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_a_wrong_declaration_is_told(declared, told):
    with pytest.raises(UsageError, match=told):
        make_kernel("temperature_softmax", right, **declared)


@pytest.mark.parametrize(
    "register", [lambda: stabcheck.kernel("softmx")(right), lambda: make_kernel("softmx", right)], ids=["decorator", "maker"]
)
def test_an_unknown_operation_is_told_where_it_is_declared(register):
    with pytest.raises(UsageError, match="unknown operation 'softmx'"):
        register()


def test_what_is_not_callable_is_told():
    with pytest.raises(UsageError, match="kernel 3 is not callable"):
        make_kernel("temperature_softmax", 3)


def test_lists_are_taken_for_tuples():
    kernel = make_kernel("temperature_softmax", right, dtypes=["fp32"], blocks=[64])
    assert kernel.dtypes == ("fp32",)
    assert tuple(kernel.blocks) == (64,)


def test_public_names_are_few_and_there():
    assert {"Kernel", "kernel", "suite", "recipes", "UsageError", "UnsupportedInput"} <= set(stabcheck.__all__)
    assert stabcheck.Kernel is Kernel


@pytest.mark.parametrize("name", stabcheck.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(stabcheck, name) is not None


def test_a_name_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(AttributeError, match=r"no attribute 'sweet'; it has .*suite"):
        _ = stabcheck.sweet


# ---- options


def capped(logits, target, **options):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"softcup": (0.0,)}, "unknown option 'softcup'"),
        ({"softcap": ()}, "pass the values it supports"),
        ({"softcap": (50,)}, "of type float"),
        ({"reduction": ("mean",)}, "laws on rows need 'none'"),
    ],
)
def test_options_no_kernel_can_have_are_told(options, told):
    with pytest.raises(UsageError, match=told):
        make_kernel("cross_entropy", capped, options=options)


def test_a_kernel_with_a_softcap_of_its_own_is_spared_the_laws_a_softcap_breaks():
    from stabcheck.laws import all_laws

    kernel = make_kernel("cross_entropy", capped, options={"softcap": (50.0,)})
    spared = {law.name for law in all_laws().values() if not law.applies(kernel)}
    assert {"masking", "shift_invariance"} <= spared
    assert not spared & {"accuracy", "gradients", "reductions", "bad_targets"}
