"""What the tests cost: CPU seconds of each test file and of the worst tests, as tables, worst first.

    python -m lab.cpu_report                                 all tests
    python -m lab.cpu_report -m "not slow" tests/host        the arguments are pytest's
    python -m lab.cpu_report --slow -m "not slow"            adds the tests above LONG to tests/slow.txt

Everything runs in one process; what its child processes use (ComfyUI's server, the browser) counts for the test that
runs meanwhile, and a fixture for the first test that asks for it. Wall seconds say little on a machine that has other
work; CPU seconds say the same on a busy one, but for some tenths.
"""

import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

import psutil
import pytest

from .package import ROOT

WORST = 30  # tests listed
LONG = 1.0  # CPU seconds above which `make test` leaves a test to `make test-all`
SLOW = ROOT / "tests" / "slow.txt"
COLLECTION = "(imports and collection)"


class CPUReport:
    """A pytest plugin that reads the CPU clock around each test, with its fixtures."""

    def __init__(self):
        self.tests: Counter[str] = Counter()
        """CPU seconds by test id."""
        self._began = cpu_seconds()

    def pytest_collection_finish(self) -> None:
        """What was used until here is nobody's test."""
        self.tests[COLLECTION] = cpu_seconds() - self._began

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        """One test with its setup and teardown."""
        began = cpu_seconds()
        result = yield
        # what ended without being waited for takes its seconds along
        self.tests[item.nodeid] += max(0.0, cpu_seconds() - began)
        return result

    def pytest_terminal_summary(self, terminalreporter) -> None:
        """Both tables."""
        terminalreporter.write_line("")
        for line in tables(self.tests):
            terminalreporter.write_line(line)


def cpu_seconds() -> float:
    """CPU seconds used so far by this process, the children that it waited for and those that still run."""
    children = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            children += _seconds(child)
        except psutil.NoSuchProcess:  # ended since it was listed
            pass
    return children + _seconds(psutil.Process())


def _seconds(process: psutil.Process) -> float:
    """With the children that it waited for."""
    times = process.cpu_times()
    waited = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return times.user + times.system + waited


def tables(tests: dict[str, float]) -> list[str]:
    """Lines of a Markdown table of files and of one of the worst tests, from CPU seconds by test id."""
    files: defaultdict[str, list[float]] = defaultdict(list)
    for test, seconds in tests.items():
        files[test.split("::")[0]].append(seconds)
    lines = ["| file | tests | CPU s |", "|---|---|---|"]
    for file, costs in sorted(files.items(), key=lambda entry: -sum(entry[1])):
        lines.append(f"| {file} | {len(costs) if file != COLLECTION else ''} | {sum(costs):.1f} |")
    count = len(tests) - (COLLECTION in tests)
    lines += [f"| all | {count} | {sum(tests.values()):.1f} |", "", "| test | CPU s |", "|---|---|"]
    worst = sorted(tests.items(), key=lambda entry: -entry[1])[:WORST]
    return lines + [f"| {test} | {seconds:.1f} |" for test, seconds in worst if test != COLLECTION]


def add_slow(tests: dict[str, float], path: Path = SLOW) -> None:
    """Adds the tests above LONG to the list, which stays in order."""
    known = set(path.read_text().splitlines()) if path.exists() else set()
    long = {test for test, seconds in tests.items() if seconds > LONG and test != COLLECTION}
    path.write_text("".join(f"{test}\n" for test in sorted(known | long)))


def main(arguments: list[str]) -> int:
    """Runs pytest with these arguments and the report; its exit code."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as make test does; before torch is imported
    slow, report = "--slow" in arguments, CPUReport()
    code = pytest.main(["-q", "-n", "0", *(each for each in arguments if each != "--slow")], plugins=[report])
    if slow:
        add_slow(report.tests)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
