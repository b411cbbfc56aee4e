"""Peers of a bench: absent where they are not installed, and called as their functions are defined."""

import sys
from types import ModuleType

import pytest
import torch

from stabcheck.bench import why_missing
from stabcheck.benchmarks import CROSS_ENTROPY, LOGSUMEXP


@pytest.mark.parametrize(
    ("benchmark", "where"), [(LOGSUMEXP, "fla.ops.utils.logsumexp"), (CROSS_ENTROPY, "fla.modules.fused_cross_entropy")]
)
def test_a_peer_that_is_not_installed_is_absent(where, benchmark, monkeypatch):
    monkeypatch.setitem(sys.modules, where, None)
    with pytest.raises(ImportError):
        benchmark.peers["fla-core"]()


def test_what_a_peer_lacks_is_told_without_where_it_lies(tmp_path, monkeypatch):
    (tmp_path / "old_peer.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=tmp_path.name) as caught:
        exec("from old_peer import newer")
    assert why_missing(caught.value) == "absent: cannot import name 'newer' from 'old_peer'"
    assert why_missing(ModuleNotFoundError("No module named 'peer'")) == "absent: No module named 'peer'"
    assert why_missing(RuntimeError("no kernel\nfor this shape")) == "failed: no kernel"


def test_fla_core_is_called_as_its_functions_are_defined(monkeypatch):
    """Signatures of fla-core 0.4.0 to 0.6.0: logsumexp_fwd(x), and cross_entropy_loss(logits, target) -> losses, z-losses of the rows."""
    stand_ins = {
        "fla.ops.utils.logsumexp": {"logsumexp_fwd": lambda x, scale=None, dtype=None: x.float().logsumexp(-1)},
        "fla.modules.fused_cross_entropy": {
            "cross_entropy_loss": lambda logits, target: (torch.nn.functional.cross_entropy(logits, target, reduction="none"), target * 0.0)
        },
    }
    for name, members in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    logits, target = torch.randn(4, 9, requires_grad=True), torch.tensor([0, 3, 8, 1])
    for benchmark, inputs, torchs in ((LOGSUMEXP, (logits.detach(),), "torch eager"), (CROSS_ENTROPY, (logits, target), "torch fp32")):
        got, wanted = (benchmark.peers[name]()(*inputs) for name in ("fla-core", torchs))
        torch.testing.assert_close(got, wanted)
