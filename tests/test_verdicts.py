"""What counts as agreement, what is counted, and which element is shown."""

import pytest
import torch
from planted import inf, nan

from stabcheck.verdicts import ANY_FINITE, Comparison, Summary, agreement, failing_rows, summarise, witness


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def compare(got, expected, bound=0.0, free=None, **more):
    bound = bound if isinstance(bound, float) else tensor(bound)
    return Comparison(tensor(got), tensor(expected), bound, None if free is None else torch.tensor(free), **more)


# ---- one element: got, expected, bound, fails


@pytest.mark.parametrize(
    ("got", "expected", "bound", "fails"),
    [
        (1.0, 1.0, 0.0, False),
        (1.0, 1.25, 0.25, False),
        (1.0, 1.26, 0.25, True),
        (0.0, -0.0, 0.0, False),
        (nan, nan, 0.0, False),
        (nan, nan, 1.0, False),
        (nan, 1.0, 1e300, True),
        (1.0, nan, 1e300, True),
        (inf, inf, 0.0, False),
        (-inf, -inf, 0.0, False),
        (inf, -inf, 1e300, True),
        (inf, 1.0, ANY_FINITE, True),
        (1.0, inf, ANY_FINITE, True),
        (nan, 1.0, ANY_FINITE, True),
        (1e300, 1.0, ANY_FINITE, False),
        (2.0**-149, 0.0, 0.0, True),
        (1.0, 1.0, nan, False),
        (1.5, 1.0, nan, True),
    ],
)
@pytest.mark.parametrize("as_tensor", [True, False], ids=["tensor", "number"])
def test_an_element_agrees_or_fails(got, expected, bound, fails, as_tensor):
    c = compare([[got]], [[expected]], [[bound]] if as_tensor else bound)
    assert agreement(c).tolist() == [[fails]]
    assert summarise([c])[0].failed == int(fails)


def test_free_elements_never_fail():
    c = compare([[5.0, nan, inf]], [[0.0, 0.0, 0.0]], free=[[True, True, True]])
    assert not agreement(c).any()
    assert summarise([c]) == [Summary(failed=0, compared=0, free=3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.bool])
def test_narrow_results_are_compared_exactly(dtype):
    got = torch.ones(1, 1, dtype=dtype)
    assert not agreement(Comparison(got, tensor([[1.0]]), 0.0)).any()
    assert agreement(Comparison(got, tensor([[1 + 2.0**-40]]), 0.0)).all()


# ---- counts


def test_everything_is_counted_once():
    c = compare([[1.0, 2.0, 3.0, 9.0]], [[1.0, 2.5, 3.0, 0.0]], [[0.1, 1.0, 30.0, 1.0]], [[False, False, False, True]])
    assert summarise([c]) == [Summary(failed=0, compared=3, free=1, ill=1, utilisation=0.5)]


def test_utilisation_is_the_worst_share_of_a_bound():
    assert summarise([compare([[1.0, 2.0]], [[1.1, 2.1]], [[0.2, 0.4]])])[0].utilisation == pytest.approx(0.5)


@pytest.mark.parametrize(("got", "expected", "bound"), [(nan, nan, 1.0), (1.0, 1.0, 0.0), (2.0, 1.0, 0.0), (inf, inf, 1.0)])
def test_no_utilisation_where_there_is_nothing_to_divide(got, expected, bound):
    assert summarise([compare([[got]], [[expected]], [[bound]])])[0].utilisation == 0


def test_a_free_elements_error_is_no_utilisation():
    assert summarise([compare([[9.0, 1.0]], [[0.0, 1.0]], [[1.0, 1.0]], [[True, False]])])[0].utilisation == 0


def test_ill_conditioned_is_a_bound_larger_than_the_value():
    assert summarise([compare([[1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0]], [[0.5, 2.0, 1e300]])])[0].ill == 2


@pytest.mark.parametrize("bound", [0.0, ANY_FINITE])
def test_laws_on_structure_have_no_ill_conditioned_elements(bound):
    assert summarise([compare([[1.0, 0.0]], [[1.0, 0.0]], bound)])[0].ill == 0


def test_several_comparisons_keep_their_places_and_empty_ones_count_nothing():
    empty = compare(torch.zeros(0, 3).tolist(), torch.zeros(0, 3).tolist())
    bad = compare([[1.0]], [[2.0]])
    assert [s.failed for s in summarise([empty, bad, empty])] == [0, 1, 0]
    assert summarise([]) == []


def test_row_sums_are_compared_too():
    c = compare([1.0, 2.0], [1.0, 3.0], [0.1, 0.1])
    assert summarise([c])[0].failed == 1
    assert failing_rows(c).tolist() == [False, True]


def test_summaries_add_up():
    assert Summary(1, 2, 3, 4, 0.5) + Summary(10, 20, 30, 40, 0.25) == Summary(11, 22, 33, 44, 0.5)


def test_rows_that_fail_are_told():
    assert failing_rows(compare([[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]])).tolist() == [True, False]


# ---- the witness


def test_the_witness_is_the_worst_element():
    seen = witness(compare([[1.1, 1.0], [1.0, 1.5]], [[1.0, 1.0], [1.0, 1.0]], [[0.01, 1.0], [1.0, 0.01]], what="a with b"))
    assert (seen.row, seen.column, seen.got, seen.expected, seen.bound) == (1, 1, 1.5, 1.0, 0.01)
    assert (seen.failed_rows, seen.rows, seen.what) == (2, 2, "a with b")


def test_a_non_finite_element_comes_before_any_finite_one():
    seen = witness(compare([[1e30, nan]], [[0.0, 0.0]], [[1e-30, 1.0]]))
    assert (seen.column, seen.kind) == (1, "non-finite")


def test_a_free_element_is_no_witness():
    assert witness(compare([[9.0, 2.0]], [[0.0, 0.0]], [[1.0, 1.0]], [[True, False]])).column == 1


def test_a_bound_of_one_number_is_shown():
    assert witness(compare([[nan]], [[1.0]], ANY_FINITE)).bound == ANY_FINITE


# ---- the kind


@pytest.mark.parametrize(
    ("comparison", "kind"),
    [
        (compare([[nan]], [[1.0]], [[0.1]]), "non-finite"),
        (compare([[inf]], [[1.0]], [[0.1]]), "non-finite"),
        (compare([[1.0]], [[nan]], [[0.1]]), "wrong"),
        (compare([[1e-30]], [[0.0]], [[0.0]]), "out of support"),
        (compare([[2.0]], [[1.0]], [[0.1]]), "wrong"),
        (compare([[2.0]], [[1.0]], [[0.1]], kind="order"), "order"),
        (compare([[2.0]], [[1.0]], [[0.1]], explanations={"m": lambda: torch.tensor([[True]])}), "unstable"),
        (compare([[2.0]], [[1.0]], [[0.1]], explanations={"m": lambda: torch.tensor([[False]])}), "wrong"),
        (compare([[2.0, 3.0]], [[1.0, 1.0]], [[0.1, 0.1]], explanations={"m": lambda: torch.tensor([[True, False]])}), "wrong"),
        (compare([[nan]], [[1.0]], [[0.1]], explanations={"m": lambda: torch.tensor([[True]])}), "non-finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_failure_is_called_what_it_is(comparison, kind):
    assert witness(comparison).kind == kind


def test_support_is_judged_by_the_kernels_bound_as_a_number_too():
    assert witness(compare([[1e-30]], [[0.0]], 0.0)).kind == "out of support"
