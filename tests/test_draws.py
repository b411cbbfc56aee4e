"""Laws with statistics, put to samplers of known distributions: perfect ones hold, planted errors are found and told by name."""

import pytest
import torch

from stabcheck.cases import Case
from stabcheck.chains import losslessness
from stabcheck.devices import GPU, Device, describe
from stabcheck.draws import bins_of, law_of_draws, of_one_whole, pair_independence, rows_to_draw, same_draws
from stabcheck.power import perfect, sampler, wrong_head
from stabcheck.recipe import Background, Recipe, Row
from stabcheck.registry import make_kernel
from stabcheck.tails import GAPS, tail_mass
from stabcheck.verdicts import Summary, summarise

CPU = describe("cpu")
BELL = Row(Background("bell", (0.0, 1.0)))


def case_of(kernel, vocab=50, row=BELL, operation="sample", **more):
    return Case(kernel, CPU, Recipe(operation, "fp32", vocab, (row,), **more))


def failures(comparisons):
    return [c.what for c in comparisons if summarise([c])[0].failed]


def test_a_perfect_sampler_holds_both_laws_and_its_draws_are_counted():
    case = case_of(sampler(perfect))
    found = [*law_of_draws(case), *pair_independence(case)]
    assert not failures(found)
    total = sum(summarise(found), Summary())
    assert (total.chances, total.draws > 10**6) == (len(found), True)


def test_one_percent_moved_from_the_first_token_to_the_second_is_found_and_the_bin_is_named():
    told = failures(law_of_draws(case_of(sampler(wrong_head))))
    assert (told and "argmax" in told[0]) or "head" in told[0]


def repeats(logits, *inputs):
    """Draws the same at positions 2i and 2i + 1."""
    position, p = inputs[-1], logits[0].double().softmax(-1)
    generator = torch.Generator().manual_seed(int(inputs[-2][0]) % 2**62 + int(position[0]))
    ids = torch.multinomial(p, (len(logits) + 1) // 2, replacement=True, generator=generator)
    return ids.repeat_interleave(2)[: len(logits)]


def test_draws_that_repeat_at_the_next_position_are_found_by_their_pairs_alone():
    case = case_of(make_kernel("sample", repeats, dtypes=["fp32"]), row=Row(Background("bell", (0.0, 1.0))))
    assert any("positions" in what for what in failures(pair_independence(case)))


def test_a_row_of_which_the_kernel_may_keep_any_of_the_ties_compares_nothing():
    row = Row(inputs=(("temperature", 1.0), ("top_k", 0), ("top_p", 0.5), ("min_p", 0.0), ("seed", 0), ("position", 0)))
    undecided = make_kernel("sample", repeats, dtypes=["fp32"], policies={"top_p_ties": "any_id"})
    assert bins_of(case_of(undecided, 8, row), case_of(undecided, 8, row).batch) is None
    decided = make_kernel("sample", repeats, dtypes=["fp32"])
    assert bins_of(case_of(decided, 8, row), case_of(decided, 8, row).batch) is not None


@pytest.mark.parametrize("vocab", [2, 8, 128])
def test_a_vocabulary_without_a_tail_compares_nothing(vocab):
    assert list(tail_mass(case_of(sampler(perfect), vocab), 20, 0.25)) == []


def test_limits_of_a_share_are_no_wider_than_those_of_the_others_leave_it():
    low, high = (torch.tensor(side, dtype=torch.float64) for side in ([0.9, 0.0009, 0.0], [1.0, 0.0011, 0.0]))
    tight = of_one_whole(low, high, 1e-15)
    torch.testing.assert_close(torch.stack(tight), torch.tensor([[0.9989, 0.0009, 0.0], [0.9991, 0.0011, 0.0]], dtype=torch.float64))


def test_a_row_whose_differences_overflow_is_not_tempered():
    huge = Row(Background("literal", (3.4e38, -3.4e38), (1, 2)))
    (_, tempered) = list(rows_to_draw(case_of(sampler(perfect), 3, huge)))[1]
    assert tempered.inputs["temperature"].tolist() == [0.25]


def only_the_head(logits, *inputs):
    return logits[:1].argmax(-1).expand(len(logits)).clone()


@pytest.mark.parametrize("gap", [18, 20])
def test_the_far_tail_is_judged_of_a_kernel_that_sums_small_tiles_one_after_another(gap, monkeypatch):
    monkeypatch.setattr("stabcheck.draws.ELEMENTS_AT_ONCE", 1 << 42)  # which need not be read here
    kernel = make_kernel("sample", only_the_head, dtypes=["fp32"], tile=128)
    case = Case(kernel, Device("cpu", "CPU", "sm_90", GPU), Recipe("sample", "fp32", 128256))
    assert failures(tail_mass(case, gap, GAPS[gap]))


def shifted(logits, *inputs):
    return sampler(perfect).function(logits, *inputs[:-2], inputs[-2] + 1, inputs[-1])


def test_a_route_with_noise_of_its_own_draws_other_ids():
    case = case_of(sampler(perfect), siblings=256)
    assert failures(same_draws(case, shifted, "route shifted"))
    assert not failures(same_draws(case, sampler(perfect).function, "the same route"))


def verifies(p, q, drafts, coins):
    """A chain of one draft, all requests at once."""
    p_d, q_d = p[:, 0].gather(1, drafts)[:, 0], q[:, 0].gather(1, drafts)[:, 0]
    accepted = coins[:, 0] * q_d < p_d
    residual = (p[:, 0] - q[:, 0]).clamp(min=0)
    residual = torch.where(residual.sum(-1, keepdim=True) > 0, residual, p[:, 0])
    weights = torch.where(accepted[:, None], p[:, 1], residual)
    emitted = (weights.cumsum(-1) <= coins[:, 1:] * weights.sum(-1, keepdim=True)).sum(-1).clamp(max=p.shape[-1] - 1)
    ids = torch.stack([torch.where(accepted, drafts[:, 0], emitted), torch.where(accepted, emitted, -1)], 1)
    return accepted.long(), ids


def stream(shared):
    def drafts_and_coins(q, seed, position):
        generator = torch.Generator().manual_seed((int(seed[0]) ^ int(position[0]) * 1000003) % 2**62)
        u = torch.rand(len(q), 3, generator=generator, dtype=torch.float64)
        drafts = (q.double().cumsum(-1) < u[:, :1, None] * q.double().sum(-1, keepdim=True)).sum(-1).clamp(max=q.shape[-1] - 1)
        return drafts, (u[:, :2] if shared else u[:, 1:]).float().clamp(max=1 - 2.0**-24)

    return drafts_and_coins


@pytest.mark.parametrize("shared", [False, True])
def test_a_chain_is_lossless_unless_drafts_and_coins_share_their_noise(shared):
    kernel = make_kernel("verify_speculative", verifies, dtypes=["fp32"], stream=stream(shared))
    assert bool(failures(losslessness(case_of(kernel, 7, operation="verify_speculative")))) == shared
