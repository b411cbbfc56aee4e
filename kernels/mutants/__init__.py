"""Kernels broken on purpose: every one must be killed by a named property. They are imported in the order in which tables show them."""

from importlib import import_module

SOFTMAX = ("softmax_scaling", "softmax_tiles", "softmax_memory", "softmax_wrong")
for _name in (*SOFTMAX, "logsumexp", "cross_entropy", "token_logprob", "filtering", "sampling", "speculative"):
    import_module(f"{__name__}.{_name}")
