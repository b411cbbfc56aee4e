"""Slots: the draw depends on the row, its parameters, its seed and its position, not on the slot of the batch it stands in.

The rows permuted give the ids permuted, and one row in every slot gives one id: the first row, and in as many slots as are cheap that row
without filters, at the temperature at which many tokens may win. Kernels break it by noise keyed by the row's number.
"""

import torch

from stabcheck.choices import OFF, with_all
from stabcheck.draws import tempered
from stabcheck.laws import law
from stabcheck.operations.base import of_rows
from stabcheck.variations import random_order

SLOTS, ELEMENTS = 32, 1 << 15


@law("a row gives the same id in any slot of the batch", traits=["draws"], row_local=False)
def test_slots(case):
    got, rows = case.run(), len(case.batch.logits)
    order = random_order(case, rows)
    yield case.same_bits(case.run(case.batch.pick(order)), of_rows(got, order), what="rows permuted", aligned=False)
    first = torch.zeros(rows, dtype=torch.int64, device=order.device)
    yield case.same_bits(case.run(case.batch.pick(first)), of_rows(got, first), what="the first row in every slot")
    if case.batch.logits.numel():
        slots = torch.zeros(max(8, min(SLOTS, ELEMENTS // case.recipe.vocab)), dtype=torch.int64, device=order.device)
        ids = case.run(with_all(case, tempered(case.batch.pick(slots)), **OFF))
        yield case.same_bits(ids, of_rows(ids, slots), what=f"the first row, tempered, in {len(slots)} slots", aligned=False)
