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
from stabcheck.gathered import Gathered

OPTIONS = {
    "kernels": ("targets of kernels to test: module, package, file.py or file.py:function (comma-separated)", "stabcheck.kernels"),
    "operation": ("the operation of a function named as a target without being registered", ""),
    "device": ("auto, cpu (through Triton's interpreter), cuda or cuda:N", "auto"),
    "report-dir": ("where findings, reproducers and results are written", "reports/latest"),
    "corpus": ("folder of committed reproducers, each of which is a test", "reports/corpus"),
    "ledger": ("file of known failures", "stabcheck-ledger.toml"),
    "only": ("kernels to keep of all collected, such as temperature_softmax[auto], or trials, KERNEL|PROPERTY|DTYPE (comma-separated)", ""),
    "baselines": ("folder of accuracy baselines, compared in profile gate", "reports/baselines"),
}
COLLECTED = (("stabcheck.laws", "Law"), ("stabcheck.suites", "Suite"))  # by name: loading the plugin imports neither
UPDATE = "record accuracy baselines that are new or better; --stabcheck-update=all: worse ones too"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stabcheck", "numerical-stability properties of GPU kernels")
    for name, (text, default) in OPTIONS.items():
        group.addoption(f"--stabcheck-{name}", default=None, help=f"{text} [{default or 'none'}]")
        parser.addini(f"stabcheck_{name.replace('-', '_')}", text, default=default)
    group.addoption("--stabcheck-update", nargs="?", const="better", default="", choices=["better", "all"], help=UPDATE)


def option(config: pytest.Config, name: str) -> str:
    """An option, else its ini twin, else the default."""
    key = name.replace("-", "_")
    given = config.getoption(f"stabcheck_{key}", None)
    return str(config.getini(f"stabcheck_{key}")) if given is None else str(given)


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
    if config.getoption("stabcheck_update", "") and config.getoption("--hypothesis-profile", None) != "gate":
        raise pytest.UsageError("--stabcheck-update records what profile gate measures, and no other; add --hypothesis-profile=gate")
    config.addinivalue_line("markers", "big: needs tens of GiB of device memory")
    config.addinivalue_line("filterwarnings", "ignore:All-NaN slice encountered:RuntimeWarning")  # of the interpreter's maximum
    config.pluginmanager.register(Plugin(config), "stabcheck-session")


YOUNG_OBJECTS = 50_000  # between garbage collections: Hypothesis makes thousands an example, and reference counts free them


class Plugin:
    """One pytest session: what is under test is resolved at the first collected law, results are gathered as reports come in."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.gathered = Gathered()
        self.shown: list[str] = []
        self._session: Any = None
        self._ledger: Any = None

    @property
    def profile(self) -> str | None:
        given: str | None = self.config.getoption("--hypothesis-profile", None)
        return given

    def path(self, name: str) -> Path:
        """An option that names a file or folder."""
        path = Path(option(self.config, name))
        return path if path.is_absolute() else Path(self.config.invocation_params.dir) / path

    def session(self) -> Any:
        """What the items share: the device, with Triton's interpreter switched on if it is the CPU, and the kernels. Imports torch."""
        if self._session is None:
            from stabcheck.devices import describe, prepare
            from stabcheck.outcomes import Session

            device = describe(prepare(option(self.config, "device")))
            targets = tuple(t for t in option(self.config, "kernels").split(",") if t)
            self._session = Session(device, self.path("report-dir"), self.ledger(), self.profile, targets)
        return self._session

    def ledger(self) -> Any:
        """The known failures; none where the option is empty."""
        if self._ledger is None:
            from stabcheck.ledger import Ledger, load

            self._ledger = load(self.path("ledger")) if option(self.config, "ledger") else Ledger()
        return self._ledger

    def kernels(self) -> Any:
        """The kernels the suites of stabcheck.properties are run on."""
        from stabcheck.targets import load

        return load(self.session().targets, option(self.config, "operation") or None)

    def pytest_collect_file(self, file_path: Path, parent: Any) -> Any:
        """A reproducer in the corpus is a test of its own."""
        if file_path.suffix != ".json" or not file_path.resolve().is_relative_to(self.path("corpus").resolve()):
            return None
        from stabcheck.corpus import CorpusFile, is_reproducer

        return CorpusFile.of(parent, file_path, self.session) if is_reproducer(file_path) else None

    def pytest_pycollect_makeitem(self, collector: Any, name: str, obj: Any) -> Any:
        if (type(obj).__module__, type(obj).__name__) not in COLLECTED or not name.startswith("test_"):
            return None
        try:
            items = list(self.items(collector, name, obj))
        except UsageError as error:
            raise collector.CollectError(str(error)) from None  # shown as it stands, without a traceback
        self.gathered.trials |= {tuple(item.identity.values()) for item in items}
        return items

    def items(self, collector: Any, name: str, obj: Any) -> Iterator[Any]:
        session = self.session()
        from stabcheck.items import items_for
        from stabcheck.laws import all_laws

        if type(obj).__name__ == "Law":
            self.gathered.laws.add(obj.name)
            return items_for(collector, name, [obj], self.kernels(), session)
        laws = all_laws()
        unknown = [p for p in obj.properties if p not in laws]
        if unknown:
            raise UsageError(f"unknown property {unknown[0]!r} in suite {name}; stabcheck knows {', '.join(laws)}")
        chosen = [law for law in laws.values() if law.name in (obj.properties or laws)]
        foreign = [law.name for law in chosen if obj.properties and not law.applies(obj.kernel)]
        if foreign:
            raise UsageError(f"property {foreign[0]!r} of suite {name} says nothing about {obj.kernel.operation}; leave it out")
        session.adopted.add(obj.kernel.target)
        return items_for(collector, name, chosen, [obj.kernel], session)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Put the corpus first, and for a worker of xdist one kernel after the other; what was not asked for is left out, and counted."""
        by_kernel = hasattr(config, "workerinput")
        items.sort(key=lambda item: (not getattr(item, "corpus", ""), getattr(item, "identity", {}).get("kernel", "") if by_kernel else ""))
        if kept := set(filter(None, option(config, "only").split(","))):
            out = [item for item in items if not kept & _names(item)]
            items[:] = [item for item in items if kept & _names(item)]
            config.hook.pytest_deselected(items=out)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.gathered.deselected += sum(hasattr(item, "identity") for item in items)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.gathered.selected |= {item.nodeid for item in session.items if hasattr(item, "identity")}
        if self._session is not None:
            gc.freeze()  # torch's and pytest's objects live to the end; walking them again and again costs a tenth of a run
            gc.set_threshold(YOUNG_OBJECTS)

    def pytest_report_collectionfinish(self, config: pytest.Config) -> list[str]:
        if self._session is None:
            return []
        from stabcheck.summary import header

        return header(str(self._session.device), self.profile)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from stabcheck.results import read

        if (found := read(report)) is not None:
            self.gathered.results.append(found)
        elif report.skipped:
            self.gathered.passed_over.add(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        if call.excinfo is not None and "CUDA error" in str(call.excinfo.value):
            item.session.shouldstop = "the GPU's context is lost after a crash: run the remaining items without the one above"

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: Any) -> None:
        """A worker of xdist hands over what it collected: this process has collected nothing."""
        if parcel := getattr(node, "workeroutput", {}).get("stabcheck"):
            self.gathered.unpack(parcel)

    def collected_all(self) -> bool:
        """Whether every property was collected for the kernels under test, so that what is missing is gone."""
        from stabcheck.laws import all_laws

        return bool(self.gathered.laws) and self.gathered.laws == set(all_laws())

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if (output := getattr(self.config, "workeroutput", None)) is not None:
            output["stabcheck"] = self.gathered.parcel()
        elif self.gathered.results:
            self.conclude(session, exitstatus)

    def conclude(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the results; a ratchet or a ledger that does not hold fails the session, as does a run that tested nothing."""
        from stabcheck.conclusions import conclude, write_all
        from stabcheck.results import BROKEN, COULD_NOT_RUN, STALE, judgement

        update, seed = (self.config.getoption(name, None) for name in ("stabcheck_update", "--hypothesis-seed"))
        profile = self.profile or ("cpu" if self.gathered.results[0]["arch"] == "interpreter" else "gpu")
        about = {"profile": profile, "seed": seed and str(seed), "session": self.gathered.session(exitstatus)}
        targets = option(self.config, "kernels").split(",")
        trials = self.gathered.trials if self.collected_all() else None
        try:
            report = conclude(self.gathered.results, self.ledger(), Path(option(self.config, "baselines")), trials, about, update, targets)
        except UsageError as error:
            self.shown, session.exitstatus = ["", f"ERROR: {error}"], pytest.ExitCode.USAGE_ERROR
            return
        self.shown = write_all(report, self.gathered.results, self.path("report-dir"))
        code = judgement(report)[0]
        others = session.testscollected > len(self.gathered.results) and not self.config.getoption("numprocesses", None)
        if exitstatus == 0 and code == COULD_NOT_RUN and not others:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        elif exitstatus == 0 and code in (BROKEN, STALE):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.shown:
            return
        terminalreporter.section("stabcheck")
        for line in self.shown[self._session is not None :]:  # the header was shown after collecting, if this process collected
            terminalreporter.write_line(line)


def _names(item: pytest.Item) -> set[str]:
    """What an item is asked for by: its kernel, or its trial."""
    identity = getattr(item, "identity", None)
    return {identity["kernel"], "|".join(identity.values())} if identity else set()
