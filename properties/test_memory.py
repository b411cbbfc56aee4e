"""Memory: a kernel reads and writes its own elements only, writes every output, and leaves its inputs alone.

Inputs lie between canaries and poisoned margins; every buffer the kernel allocates is poisoned with a NaN of its own and guarded in the
same way. Kernels break it with store masks that are off by one, tails never written, and inputs used as scratch space.
"""

from stabcheck.guards import run_guarded
from stabcheck.laws import law


@law("nothing outside the buffers is written, every output is, and inputs are unchanged", row_local=False)
def test_memory(case):
    for batch in case.batches:
        watched = run_guarded(case, batch)
        yield case.no_fault(watched.overruns, what="canaries around each buffer (one row per buffer)")
        for name, unwritten in watched.unwritten.items():
            yield case.no_fault(unwritten, what=case.named(name, "output elements never written"))
        yield case.no_fault(watched.changed, what="input elements changed")
        yield case.against_reference(watched.results, batch, what="the result between poisoned margins")
