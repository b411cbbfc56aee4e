"""Compiles kernels for sm_90; prints, tab-separated: kernel, whether addresses were said to be aligned, wide accesses of memory, others."""

import re
import sys
from importlib import import_module

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {
    **dict.fromkeys(["x", "grad"], "*bf16"),
    **dict.fromkeys(["temperature", "out", "partials", "selection", "losses", "saved", "upstream", "p", "q", "coins", "sums"], "*fp32"),
    **dict.fromkeys(["target", "ids", "accepted"], "*i64"),
}
FLOATS = ("empty", "keep", "share", "square", "cap", "vocab_unit")
OPTIONS = {"LANES": 256, "STEPS": 4, "WIDTH": 8, "SPAN": 0, "SMOOTH": 1, "BLOCK": 2048, "BLOCKS": 4, "ALIGNED": True}  # others are False


def argument(parameter):
    """("constexpr", value) or (type, None)."""
    name = parameter.name
    if parameter.is_constexpr:
        return "constexpr", OPTIONS.get(name, False)
    if name.endswith("_col"):
        return "constexpr", 1
    return POINTERS.get(name, "fp32" if name in FLOATS else "i32"), None


def accesses(function, said):
    """(wide, others) accesses of global memory."""
    given = {p.name: argument(p) for p in function.params}
    known = [p for p in function.params if given[p.name][0].startswith("*") and (said or not p.do_not_specialize_on_alignment)]
    source = ASTSource(
        function,
        {name: kind for name, (kind, _) in given.items()},
        {(p.num,): given[p.name][1] for p in function.params if given[p.name][0] == "constexpr"},
        {(p.num,): [["tt.divisibility", 16]] for p in known},
    )
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    found = re.findall(r"(?:ld|st)\.global\S*", made.asm["ptx"])
    return sum(".v4" in access for access in found), sum(".v4" not in access for access in found)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        module, function = name.split()
        kernel = getattr(import_module(f"stabcheck.kernels.{module}_device"), function)
        for said in (True, False):
            print(name, said, *accesses(kernel, said), sep="\t")
