"""Reports to lay out: small ones with one thing in them, one with everything, and one that is too large."""

from __future__ import annotations

import math
from typing import Any

from stabcheck.regimes import INPUT_REGIMES
from stabcheck.regimes import REGIMES as REGIME_RULES

VERSIONS = {"hypothesis": "6.170.15", "numpy": "2.4.6", "python": "3.12.3", "torch": "2.11.0", "triton": "3.6.0"}
H200, INTERPRETER = ("NVIDIA H200 (sm_90)", "sm_90"), ("CPU (interpreter)", "interpreter")
KERNELS = (
    "temperature_softmax[auto]",
    "temperature_softmax[online]",
    "temperature_softmax[split]",
    "logsumexp[auto]",
    "cross_entropy[as_torch]",
)
KERNELS += ("token_logprob[raising]", "filtered_probs[auto]", "sample[auto]", "verify_speculative[auto]")
LAWS = (
    "accuracy",
    "finiteness",
    "normalisation",
    "shift_invariance",
    "permutation",
    "masking",
    "isolation",
    "determinism",
    "layout",
    "memory",
)
LAWS += ("in_place", "routes", "graph_replay", "range", "widening")
DTYPES = ("fp32", "bf16", "fp16")
TEXT = """BROKEN  {property} · {kernel} · {dtype} · sm_90                        id {id}
  law      every probability is within its derived bound of the fp64 reference
  input    V = 1025, T = 1, logits = [-inf × 1024, 0]
  got      nan at (0, 1024)           expected 1              bound 0.0039
  rows     1 of 1 {kind}              shrunk from 64 × 4097 in 41 steps
  replay   stabcheck replay reports/latest/{id}.json
  script   reports/latest/repro_{id}.py"""

REGIMES = dict.fromkeys([*REGIME_RULES, *(name for rules in INPUT_REGIMES.values() for name in rules), "no rows"], 100)


def finding(id="7f3a2c", kernel=KERNELS[0], property="accuracy", dtype="bf16", kind="non-finite", text=None, **more) -> dict[str, Any]:
    about = {"id": id, "kernel": kernel, "property": property, "dtype": dtype, "kind": kind}
    files = [f"reports/latest/{id}.json", f"reports/latest/repro_{id}.py"]
    text = TEXT.format(**about) if text is None else text
    return about | {"rows": 1, "vocab": 1025, "steps": 41, "files": files, "replay": f"stabcheck replay {files[0]}", "text": text} | more


def item(
    kernel=KERNELS[0], property="accuracy", dtype="bf16", outcome="passed", findings=(), reason="", host=H200, use=0.5, **tally
) -> dict[str, Any]:
    ran = outcome != "skipped"
    total = {
        "failed": 0,
        "compared": 4000 * ran,
        "free": 0,
        "ill": 40 * ran,
        "utilisation": use * ran,
        "ulp": 4 * use * ran,
        "draws": 0,
        "chances": 0,
    }
    counted = {
        "examples": 50 * ran,
        "rows": 2000 * ran,
        "elements": 3_000_000 * ran,
        "vacuous": 0,
        "unsupported": 0,
        "short": 0,
        "killed_at": 0,
    }
    operation, _, name = kernel.removesuffix("]").partition("[")
    return {
        "test": f"test_{property}.py::test_{property}[{operation}-{name}-{dtype}]",
        "kernel": kernel,
        "property": property,
        "dtype": dtype,
        "device": host[0],
        "arch": host[1],
        "outcome": outcome,
        "reason": reason,
        "corpus": "",
        "tally": counted | {"total": total, "regimes": REGIMES} | (curves(use) if ran else {}) | tally,
        "findings": list(findings),
    }


def curves(use: float) -> dict[str, Any]:
    """What plots are made of, as a kernel that uses so much of its bound would give them."""
    by_vocab = {str(k): round(use * (0.35 + 0.65 * k / 18), 4) for k in range(19)}
    by_magnitude = {str(k): round(use * (0.6 + 0.4 * math.sin(k / 6)), 4) for k in (-1, 0, 1, 2, 4, 10, 20, 30, 38)}
    return {"by_vocab": by_vocab, "by_magnitude": by_magnitude, "ulps": {str(k): int(10 ** (7 - 1.3 * (k + 3))) for k in range(-3, 2)}}


def report(*items, **more) -> dict[str, Any]:
    hosts = dict.fromkeys((i["device"], i["arch"]) for i in items)
    known = {"schema": "stabcheck-report/1", "profile": "gate", "seed": "0", "versions": VERSIONS}
    return known | {"hosts": [{"device": d, "arch": a, "versions": VERSIONS} for d, a in hosts], "items": list(items)} | more


def old(report: dict[str, Any]) -> dict[str, Any]:
    """The same as an older version wrote it."""
    items = []
    for one in report["items"]:
        tally = {key: value for key, value in one["tally"].items() if key not in ("by_vocab", "by_magnitude", "ulps")}
        tally["total"] = {key: value for key, value in tally["total"].items() if key not in ("ulp", "draws", "chances")}
        items.append({key: value for key, value in one.items() if key != "corpus"} | {"tally": tally})
    return {key: report[key] for key in ("schema", "profile", "versions")} | {"items": items}


def grid(kernels=KERNELS, laws=LAWS, dtypes=DTYPES, host=H200) -> list[dict[str, Any]]:
    """Every kernel under every law; some cannot run."""
    uses = {"fp32": 0.3, "bf16": 0.995, "fp16": 0.99}
    near = ("accuracy", "layout", "masking", "normalisation", "shift_invariance", "permutation")
    items = []
    for i, kernel in enumerate(kernels):
        for j, law in enumerate(laws):
            absent = law in ("in_place", "routes") and i % 3 > 0
            for dtype in dtypes:
                use = 0.0 if law not in near else uses.get(dtype, 0.5) * (1 - ((i + 2 * j) % 7) / 9)
                outcome, reason = ("skipped", f"the kernel declares no {law}") if absent else ("passed", "")
                items.append(item(kernel, law, dtype, outcome, reason=reason, host=host, use=round(use, 4)))
    return items


def everything() -> dict[str, Any]:
    """A failing report with one of each thing that can be in one."""
    items = grid()
    at = {(i["kernel"], i["property"], i["dtype"]): k for k, i in enumerate(items)}
    broken = finding(), finding("b81e04", "cross_entropy[as_torch]", "shift_invariance", "fp32", "wrong")

    def put(kernel, law, dtype, outcome, findings=(), use=0.4, **more):
        items[at[kernel, law, dtype]] = item(kernel, law, dtype, outcome, findings, use=use, **more)

    put("temperature_softmax[auto]", "accuracy", "bf16", "failed", [broken[0]], 0.9)
    put("cross_entropy[as_torch]", "shift_invariance", "fp32", "failed", [broken[1]], 37.5)
    put("logsumexp[auto]", "memory", "fp16", "failed")
    put("sample[auto]", "determinism", "fp32", "known", [finding("c0ffee", "sample[auto]", "determinism", "fp32", "not deterministic")])
    put("token_logprob[raising]", "masking", "bf16", "unexpected pass")
    issue = "https://example.com/kernels/issues/12"
    entry = {
        "kernel": "sample[auto]",
        "property": "determinism",
        "dtype": "fp32",
        "kind": "not deterministic",
        "issue": issue,
        "state": "known",
    }
    passing = {"kernel": "token_logprob[raising]", "property": "masking", "dtype": "bf16", "kind": "wrong", "state": "unexpected pass"}
    moved = {"kernel": "temperature_softmax[split]", "metric": "accuracy.bf16.utilisation", "was": 0.31, "now": 0.62}
    gone = entry | {"kernel": "sample[old]", "state": "stale"}
    baselines = {
        "arch": "sm_90",
        "directory": "reports/baselines",
        "state": "compared",
        "missing": ["temperature_softmax[auto] accuracy.bf16.ulp"],
        "stale": ["temperature_softmax[gone] accuracy.bf16.ulp"],
        "loosened": [moved, moved | {"metric": "accuracy.bf16.ulp", "was": 1.0, "now": "inf"}],
        "tighter": [moved | {"was": 0.9, "now": 0.5}],
    }
    more = {"baselines": baselines, "mutants": {"killed": ["SM1", "SM2"], "survived": ["SM3"]}}
    return report(*items, ledger=[entry, entry | passing, gone], scope={"since": "main", "left_out": ["logsumexp[one_level]"]}, **more)


def large(items=1000, findings=50) -> dict[str, Any]:
    """As large as a page has to bear."""
    kernels = [f"{KERNELS[k % len(KERNELS)].partition('[')[0]}[variant_{k:02}]" for k in range(items // (len(LAWS) * 3) + 1)]
    all_items = grid(kernels)[:items]
    step = len(all_items) // max(findings, 1)
    for k in range(findings):
        one = all_items[k * step]
        found = finding(f"{k:06x}", one["kernel"], one["property"], one["dtype"], "wrong")
        all_items[k * step] = item(one["kernel"], one["property"], one["dtype"], "failed", [found], use=2.5)
    return report(*all_items)


def bench(operation="softmax", points=6) -> dict[str, Any]:
    def timing(us):
        return {"median": us, "p20": us * 0.98, "p80": us * 1.03, "host": 40.0, "memory": 1.0}

    lines = []
    for k in range(points):
        floor = 0.5 * 3**k
        lines.append(
            {
                "point": {"dtype": ("bf16", "fp32")[k % 2], "vocab": 32000, "rows": 4**k},
                "floor": floor,
                "copy": timing(floor + 3.5),
                "ours": timing(floor * 1.05 + 6),
                "variants": {},
                "peers": {"torch eager": timing(floor * 4 + 19), "torch.compile": timing(floor * 1.9 + 12)},
                "missing": {"flashinfer": "absent: No module named 'flashinfer'"},
                "ours / fastest peer": round((floor * 1.05 + 6) / (floor * 1.9 + 12), 3),
                "ours / floor": round((floor * 1.05 + 6) / floor, 3),
                "ours / copy": 1.5,
            }
        )
    about = {"operation": operation, "device": "NVIDIA H200", "arch": "sm_90", "floor": "each byte once", "copy_tb_per_s": 4.2}
    return about | {"command": f"stabcheck bench {operation} --out reports/bench", "points": lines}


BENCHES = [bench(name) for name in ("softmax", "logsumexp", "sample")]
ATTACK = "<script>alert(1)</script>"
