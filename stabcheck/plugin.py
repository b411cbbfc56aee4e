"""The pytest plugin: options, collection, header and summary. Loading it imports neither torch nor triton."""

from __future__ import annotations

import gc
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stabcheck.errors import UsageError

OPTIONS = {
    "kernels": ("targets of kernels to test: module, package, file.py or file.py:function (comma-separated)", "stabcheck.kernels"),
    "operation": ("the operation of a function named as a target without being registered", ""),
    "device": ("auto, cpu (through Triton's interpreter), cuda or cuda:N", "auto"),
    "report-dir": ("where findings, reproducers and results are written", "reports/latest"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stabcheck", "numerical-stability properties of GPU kernels")
    for name, (text, default) in OPTIONS.items():
        group.addoption(f"--stabcheck-{name}", default=None, help=f"{text} [{default or 'none'}]")
        parser.addini(f"stabcheck_{name.replace('-', '_')}", text, default=default)


def option(config: pytest.Config, name: str) -> str:
    """An option, else its ini twin, else the default."""
    key = name.replace("-", "_")
    return config.getoption(f"stabcheck_{key}", None) or str(config.getini(f"stabcheck_{key}"))


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Switch Triton's interpreter on before any test module can import a kernel: @triton.jit asks for it when it decorates."""
    choice = option(early_config, "device")
    if choice == "cpu" or (choice == "auto" and not accelerator_present()):
        os.environ.setdefault("TRITON_INTERPRET", "1")


def accelerator_present() -> bool:
    """Whether a device node of an accelerator is there, asked of the system and not of torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    nodes = ["/dev/kfd", "/dev/dxg", *glob.glob("/dev/dri/renderD*"), *([] if hidden else glob.glob("/dev/nvidia[0-9]*"))]
    return any(map(os.path.exists, nodes))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--hypothesis-profile", None):
        from stabcheck.profiles import register

        register()
    config.addinivalue_line("markers", "big: needs tens of GiB of device memory")
    config.addinivalue_line("filterwarnings", "ignore:All-NaN slice encountered:RuntimeWarning")  # of the interpreter's maximum
    config.pluginmanager.register(Session(config), "stabcheck-session")


YOUNG_OBJECTS = 50_000  # between garbage collections: Hypothesis makes some thousands an example, and reference counts free them


class Session:
    """One pytest session: what is under test is resolved at the first collected law, results are gathered as reports come in."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.results: list[dict[str, Any]] = []
        self.skipped: list[tuple[str, str]] = []
        self._resolved: Any = None
        self._kernels: Any = None

    @property
    def profile(self) -> str | None:
        given: str | None = self.config.getoption("--hypothesis-profile", None)
        return given

    @property
    def report_dir(self) -> Path:
        path = Path(option(self.config, "report-dir"))
        return path if path.is_absolute() else Path(self.config.invocation_params.dir) / path

    def device(self) -> Any:
        """The device, with Triton's interpreter switched on if it is the CPU. Imports torch."""
        if self._resolved is None:
            from stabcheck.devices import describe, prepare

            self._resolved = describe(prepare(option(self.config, "device")))
        return self._resolved

    def kernels(self) -> Any:
        """The kernels the suites of stabcheck.properties are run on."""
        self.device()
        if self._kernels is None:
            from stabcheck.targets import load

            targets = [t for t in option(self.config, "kernels").split(",") if t]
            self._kernels = load(targets, option(self.config, "operation") or None)
        return self._kernels

    @pytest.hookimpl
    def pytest_pycollect_makeitem(self, collector: Any, name: str, obj: Any) -> Any:
        kind = type(obj)
        if (
            kind.__module__ not in ("stabcheck.laws", "stabcheck.suites")
            or kind.__name__ not in ("Law", "Suite")
            or not name.startswith("test_")
        ):
            return None
        try:
            return list(self.items(collector, name, obj))
        except UsageError as error:
            raise collector.CollectError(str(error)) from None  # shown as it stands, without a traceback

    def items(self, collector: Any, name: str, obj: Any) -> Iterator[Any]:
        device = self.device()
        from stabcheck.items import items_for
        from stabcheck.laws import all_laws

        if type(obj).__name__ == "Law":
            return items_for(collector, name, [obj], self.kernels(), device, self.profile, self.report_dir)
        laws = all_laws()
        unknown = [p for p in obj.properties if p not in laws]
        if unknown:
            raise UsageError(f"unknown property {unknown[0]!r} in suite {name}; stabcheck knows {', '.join(laws)}")
        chosen = [law for law in laws.values() if law.name in (obj.properties or laws)]
        foreign = [law.name for law in chosen if obj.properties and not law.applies(obj.kernel)]
        if foreign:
            raise UsageError(f"property {foreign[0]!r} of suite {name} says nothing about {obj.kernel.operation}; leave it out")
        return items_for(collector, name, chosen, [obj.kernel], device, self.profile, self.report_dir)

    def pytest_collection_finish(self) -> None:
        if self._resolved is not None:
            gc.freeze()  # torch's and pytest's objects live to the end; walking them again and again costs a tenth of a run
            gc.set_threshold(YOUNG_OBJECTS)

    def pytest_report_collectionfinish(self, config: pytest.Config) -> list[str]:
        if self._resolved is None:
            return []
        from stabcheck.summary import header

        return [header(str(self._resolved), self.profile)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from stabcheck.results import read

        if (found := read(report)) is not None:
            self.results.append(found)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        if call.excinfo is not None and "CUDA error" in str(call.excinfo.value):
            item.session.shouldstop = (
                "the GPU's context is lost after a crash: the remaining items could not run; run them without the one above"
            )

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """A run in which every trial was skipped has tested nothing: pytest's status for no tests, not success."""
        others = session.testscollected > len(self.results) and not self.config.getoption("numprocesses", None)
        if exitstatus == 0 and self.results and not others and all(r["outcome"] == "skipped" for r in self.results):
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.results:
            return
        from stabcheck.results import write
        from stabcheck.summary import header, lines

        terminalreporter.section("stabcheck")
        head = header(self.results[0]["device"], self.profile)
        if self._resolved is None:  # under xdist nothing is collected here
            terminalreporter.write_line(head)
        shown = list(lines(self.results, self.profile))
        for line in shown:
            terminalreporter.write_line(line)
        try:
            terminalreporter.write_line(f"results  {write(self.results, self.report_dir, self.profile, [head, *shown])}")
        except OSError as error:
            terminalreporter.write_line(
                f"results could not be written to {self.report_dir}: {error.strerror}; choose --stabcheck-report-dir"
            )
