"""The report of the tests' CPU seconds: those of processes that a test starts are its own, the worst first."""

import subprocess
import sys

from steer.lab.cpu_report import COLLECTION, LONG, SLOW, add_slow, tables
from steer.lab.package import ROOT

TESTS = """
import subprocess, sys, time

def burn():
    end = time.process_time() + 0.6
    while time.process_time() < end:
        pass

def test_idle(): pass

def test_own(): burn()

def test_of_a_child():
    code = "import time\\nend = time.process_time() + 1.0\\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", code], check=True)

def test_of_a_child_that_goes_on():
    test_of_a_child.child = subprocess.Popen([sys.executable, "-c", "import time\\nwhile True: pass"])
    time.sleep(0.1)
    import psutil
    while psutil.Process(test_of_a_child.child.pid).cpu_times().user < 1.5:
        time.sleep(0.05)

def test_fails_and_is_counted():
    test_of_a_child.child.kill()
    test_of_a_child.child.wait()
    assert False
"""


def test_files_and_tests_worst_first():
    lines = tables({COLLECTION: 2.0, "a.py::one": 1.0, "a.py::two": 1.5, "b.py::one": 4.0})
    assert lines[2:6] == ["| b.py | 1 | 4.0 |", "| a.py | 2 | 2.5 |", f"| {COLLECTION} |  | 2.0 |", "| all | 3 | 8.5 |"]
    assert lines[-3:] == ["| b.py::one | 4.0 |", "| a.py::two | 1.5 |", "| a.py::one | 1.0 |"]


def test_children_count_for_the_test_that_runs_meanwhile(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "lab.cpu_report", "-p", "no:cacheprovider", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and "1 failed, 4 passed" in run.stdout, run.stdout + run.stderr
    rows = [line.strip("| ").split(" | ") for line in run.stdout.splitlines() if line.startswith("| ") and "::" in line]
    seconds = {name.rpartition("::")[2]: float(cpu) for name, cpu in rows}
    goes_on, child, own = "test_of_a_child_that_goes_on", "test_of_a_child", "test_own"
    assert seconds[goes_on] >= 1.4 and seconds[child] >= 0.9 and seconds[own] >= 0.5 and seconds["test_idle"] < 0.4
    assert list(seconds.values()) == sorted(seconds.values(), reverse=True)


def test_the_list_of_slow_tests_grows_in_order(tmp_path):
    path = tmp_path / "slow.txt"
    add_slow({"b.py::long": LONG + 1, "b.py::short": LONG, COLLECTION: 99.0}, path)
    add_slow({"a.py::long": LONG + 1, "b.py::long": 0.0}, path)
    assert path.read_text() == "a.py::long\nb.py::long\n"


def test_slow_tests_are_of_files_that_there_are():
    listed = SLOW.read_text().splitlines()
    assert listed == sorted(set(listed)) and all((ROOT / test.split("::")[0]).is_file() for test in listed)
