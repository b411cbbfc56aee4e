"""CUDA-graph replay = eager: a captured launch, replayed on new contents of the same buffers, gives the bits of an eager call.

Kernels break it by reading values on the host, by workspaces that are not reset between replays, by choosing a route from the contents.
"""

from stabcheck.laws import law
from stabcheck.variations import run_captured


@law("a captured CUDA graph replayed on new contents gives the bits of an eager call", gpu=True, weight=0.25)
def test_graph_replay(case):
    for batch in case.batches:
        yield case.same_bits(run_captured(case, batch), case.run(batch), what="graph replay with eager")
