"""Kernels under test: what one implementation of an operation is called and what it promises.

A kernel is registered by a decorator that returns the function unchanged, so registering costs its callers nothing:

    @stabcheck.kernel("temperature_softmax", dtypes=["bf16", "fp32"])
    def fused_softmax(logits, temperature): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from stabcheck.errors import UsageError

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)

MOST_NOISE_ERROR = 1e-3  # beyond, the oracle of the draws would grant nearly any id
DTYPES = ("fp32", "bf16", "fp16")
FUNCTIONS = ("in_place", "pooled", "noise", "stream")  # fields of a kernel that are functions beside the kernel's own


@dataclass(frozen=True)
class Mutant:
    """Why a kernel is broken on purpose, and what must notice.

    `killed_by` are property names; a kill counts when one of them fails and the finding shrinks to at most
    `rows` × `vocab` (None: no limit on that side).
    """

    id: str
    mistake: str
    killed_by: tuple[str, ...]
    source: str
    rows: int | None = 1
    vocab: int | None = None


@dataclass(frozen=True)
class Kernel:
    """One implementation of an operation, with what it supports.

    `function` takes the operation's inputs by position, its options by keyword, and returns new outputs. `in_place`, if given, has the
    same signature and overwrites the logits with the output of their shape. `routes` names every code path a dispatcher may take.
    `pooled` takes its per-row inputs as pools, [any length], and their places in these, `index` [R] int64, by position at the end.
    `noise` is the exponential variates a sampler draws with: (seed [R], position [R], V, role=0) -> [R, V] fp64, −log u for uniform u, as
    the kernel realises them up to `noise_error`, relative; the id drawn maximises z − log noise. `stream` is what feeds a verifier of
    drafts: (draft_probs [R, K, V], seed [R], position [R]) -> (draft_ids [R, K], coins [R, K + 1]).
    `options` replaces the values drawn for an option by those the kernel supports, e.g. {"softcap": (0.0,)}, or (50.0,).
    """

    name: str
    operation: str
    function: Function
    dtypes: tuple[str, ...] = DTYPES
    output: str | None = None  # "input": the output has the logits' dtype; "fp32"; None: what the operation says
    in_place: Function | None = None
    routes: Mapping[str, Function] = field(default_factory=dict)
    pooled: Function | None = None
    noise: Function | None = None
    noise_error: float = 0.0
    stream: Function | None = None
    policies: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    error_model: str = "shift_first"
    tile: int = 1024  # elements summed at once; with `lanes` the height of the summation follows from it
    lanes: int = 128  # threads that sum a tile side by side; Triton's default is 4 warps of 32
    blocks: tuple[int, ...] = (1024,)  # block sizes it launches with: vocab sizes around their multiples are drawn
    max_vocab: int | None = None
    strides: bool = True  # accepts rows and columns of any stride
    batch_invariant: bool = False  # a row's bits do not depend on the number of rows
    gpu_only: bool = False  # cannot run through Triton's interpreter
    mutant: Mutant | None = None

    @property
    def target(self) -> str:
        """Where the function lives, as `module:name` or `path/to/file.py:name`; what a reproducer records."""
        return target_of(self.function, self.name)

    @property
    def id(self) -> str:
        """How reports name it: `operation[name]`."""
        return f"{self.operation}[{self.name}]"


FILES: dict[str, str] = {}  # modules loaded from a file by path: module name -> path as the user gave it
_REGISTERED: dict[str, Kernel] = {}


def target_of(function: Function, name: str = "") -> str:
    """Where a function lives; `name` for one that has none."""
    module = str(getattr(function, "__module__", ""))
    return f"{FILES.get(module, module)}:{getattr(function, '__qualname__', name)}"


def kernel(operation: str, *, name: str | None = None, dtypes: Iterable[str] = DTYPES, **declared: Any) -> Callable[[F], F]:
    """Register the decorated function as a kernel of `operation` and return it unchanged.

    Parameters
    ----------
    operation: the name of an operation, e.g. "temperature_softmax" (`stabcheck list` shows all).
    name: how reports call it; the function's name unless given.
    dtypes: logit dtypes it supports, among "fp32", "bf16", "fp16".
    declared: any other field of `Kernel`.

    Raises
    ------
    UsageError: an unknown operation, dtype, error model or field.
    """

    def register(function: F) -> F:
        made = make_kernel(operation, function, name=name, dtypes=dtypes, **declared)
        key = f"{made.function.__module__}:{made.id}"
        before = _REGISTERED.get(key, made)  # the same function again, as when a notebook's cell is run twice, replaces itself
        _check(before.target == made.target, f"{key} is registered by {before.target} and {made.target}; give one another name=")
        _REGISTERED[key] = made
        return function

    return register


def make_kernel(operation: str, function: Function, *, name: str | None = None, dtypes: Iterable[str] = DTYPES, **declared: Any) -> Kernel:
    """A checked `Kernel` that is not registered; `kernel` and `suite` are built on it."""
    _check(callable(function), f"kernel {function!r} is not callable; pass the function that launches it")
    _check(not isinstance(dtypes, str), f"dtypes is {dtypes!r}; pass a list, e.g. [{dtypes!r}]")
    fields = Kernel.__dataclass_fields__
    for key in declared:
        _check(key in fields, f"a kernel has no field {key!r}; it has {', '.join(fields)}")
    called = name or str(getattr(function, "__name__", "kernel"))
    made = Kernel(name=called, operation=operation, function=function, dtypes=tuple(dtypes), **declared)
    _check_declared(made)
    return made


def _check_declared(made: Kernel) -> None:
    """Raise UsageError for a value no kernel can have."""
    from stabcheck.operations import operation  # late: it imports torch, which the pytest plugin must not

    of = operation(made.operation)
    known, pools = of.policies, {option.name: option.values for option in of.options}
    _check(bool(made.dtypes), "dtypes is empty; name at least one dtype the kernel supports")
    for dtype in made.dtypes:
        _check(dtype in DTYPES, f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    for policy, answer in made.policies.items():
        _check(answer in known.get(policy, ()), f"unknown policy {policy}={answer!r}; {made.operation} has {dict(known)}")
    for name, values in made.options.items():
        _check(name in pools, f"unknown option {name!r}; {made.operation} has {', '.join(pools) or 'none'}")
        kind = type(pools[name][0])
        fits = isinstance(values, tuple | list) and bool(values) and all(type(v) is kind for v in values)
        _check(fits, f"options are {name}={values!r}; pass the values it supports, of type {kind.__name__}, e.g. {pools[name]}")
        closed = of.option(name).choices
        _check(not closed or pools[name][0] in values, f"options are {name}={values!r}; laws on rows need {pools[name][0]!r} among them")
    _check(made.error_model in of.error_models, f"unknown error_model {made.error_model!r}; use one of {', '.join(of.error_models)}")
    _check(made.output in ("input", "fp32", None), f"unknown output {made.output!r}; use 'input' or 'fp32'")
    for field_name in ("tile", "lanes", "max_vocab"):
        value = getattr(made, field_name)
        fits = (value is None and field_name == "max_vocab") or (isinstance(value, int) and value >= 1)
        _check(fits, f"{field_name} is {value!r}; pass a whole number of at least 1")
    _check(_positive(made.blocks), f"blocks is {made.blocks!r}; pass a tuple of at least one positive block size")
    _check(isinstance(made.strides, bool), f"strides is {made.strides!r}; pass True or False")
    overwrites = next((output for output in of.outputs if output.per == "element"), None)
    _check(overwrites is not None or made.in_place is None, f"{made.operation} has no output of the logits' shape to overwrite them with")
    declared = overwrites is not None and overwrites.dtype == "declared"
    narrow = made.in_place and declared and (made.output or of.output) == "fp32" and made.dtypes != ("fp32",)
    _check(not narrow, "output is 'fp32' with in_place; a result in place has the logits' dtype: register it as a kernel of its own")
    error = made.noise_error
    _check(
        isinstance(error, int | float) and 0 <= error <= MOST_NOISE_ERROR,
        f"noise_error is {error!r}; pass 0 to {MOST_NOISE_ERROR}, relative",
    )
    for role, trait in (("noise", "draws"), ("stream", "verifies")):
        _check(getattr(made, role) is None or trait in of.traits, f"{made.operation} has no use for {role}=; leave it out")
    helpers = [(role, getattr(made, role)) for role in FUNCTIONS]
    for role, function in (*helpers, *made.routes.items()):
        _check(function is None or callable(function), f"{role} is {function!r}, not callable; pass a function")


def registered(modules: Iterable[str] | None = None) -> list[Kernel]:
    """Registered kernels, in order of registration; only those defined in `modules` if given."""
    wanted = None if modules is None else set(modules)
    return [k for key, k in _REGISTERED.items() if wanted is None or key.partition(":")[0] in wanted]


def _positive(blocks: Any) -> bool:
    return isinstance(blocks, tuple | list) and bool(blocks) and all(isinstance(b, int) and b >= 1 for b in blocks)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)
