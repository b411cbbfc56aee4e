"""Hypothesis profiles, and how large batches may be on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stabcheck.errors import UsageError

EXAMPLES = {"cpu": 10, "gpu": 100, "gate": 50, "soak": 2000}
# by "on a GPU": rows, elements and columns of one batch; the interpreter runs every program of a launch in turn, in Python
LIMITS = {
    True: {"max_rows": 1536, "max_elements": 1 << 22, "max_vocab": 262144},
    False: {"max_rows": 24, "max_elements": 1 << 15, "max_vocab": 32768},
}


def register() -> None:
    """Register the profiles cpu, gpu, gate and soak, unless the project has profiles of these names."""
    from hypothesis import HealthCheck, Phase, settings

    for name, examples in EXAMPLES.items():
        if _known(name):
            continue
        extra: dict[str, Any] = {"derandomize": True, "database": None} if name == "gate" else {"derandomize": False}
        settings.register_profile(
            name,
            max_examples=examples,
            deadline=None,  # the first example of a size compiles a kernel
            phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            **extra,
        )


def check_profile(name: str) -> None:
    """Raise UsageError for a profile nobody registered; profiles of a project's conftest.py are pytest's to find."""
    register()
    if name and not _known(name) and not Path("conftest.py").exists():
        raise UsageError(f"unknown profile {name!r}; use one of {', '.join(EXAMPLES)}, or register it in conftest.py")


def settings_for(profile: str | None, on_gpu: bool, weight: float) -> Any:
    """The settings of one item: the profile asked for, or the device's own, with the law's share of examples."""
    from hypothesis import HealthCheck, settings

    register()
    base = settings.get_profile(profile or ("gpu" if on_gpu else "cpu"))
    return settings(base, max_examples=max(1, round(base.max_examples * weight)), deadline=None, suppress_health_check=list(HealthCheck))


def _known(name: str) -> bool:
    from hypothesis import settings
    from hypothesis.errors import InvalidArgument

    try:
        settings.get_profile(name)
    except InvalidArgument:
        return False
    return True
