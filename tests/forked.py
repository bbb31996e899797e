"""Run the tests in processes that are forked after everything was imported and collected.

Importing torch, transformers and Gradio and collecting the tests takes half a minute of CPU, which
pytest-xdist spends in each worker. Here it is spent once: `pytest --processes 3` collects, forks
three workers, and hands them the tests file by file, so that a file's fixtures are made once.
Each worker sends its reports to this process, which shows them as if it had run the tests.
"""

import os
import signal
import sys
import threading
from itertools import chain, pairwise
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

import pytest

_NUM_SHOWN = 12  # files in the summary of CPU seconds


class ForkedWorkers:
    """A pytest plugin that replaces the loop over the tests.

    Args:
        num_workers: Number of processes.
        group_of: Returns the group of a test; a group runs in one worker.
        before_tests: Called in each worker before its first test, with the session and its number.
    """

    def __init__(self, num_workers, group_of, before_tests):
        self._num_workers = num_workers
        self._group_of, self._before_tests = group_of, before_tests
        self._waiting: list[str] = []  # groups
        self._running: dict[Connection, str] = {}  # the test that a worker runs
        self._cpu_seconds: dict[str, float] = {}  # of each group

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        """Fork the workers, hand out the groups in the order of collection, and show reports."""
        if session.testsfailed or session.config.option.collectonly:
            return None  # pytest's own loop handles both
        groups: dict[str, list[pytest.Item]] = {}
        for item in session.items:
            groups.setdefault(self._group_of(item), []).append(item)
        self._waiting = list(groups)
        _check_fork_is_safe()
        session.config._tmp_path_factory.getbasetemp()  # removed by this process
        workers = dict(self._fork(session, groups, n) for n in range(self._num_workers))
        try:
            while workers:
                for worker in wait(list(workers)):
                    assert isinstance(worker, Connection)
                    if self._is_done(session, worker):
                        os.waitpid(workers.pop(worker), 0)
                    if stop := session.shouldfail or session.shouldstop:
                        raise session.Failed(stop)
        finally:
            for pid in workers.values():
                os.kill(pid, signal.SIGINT)  # their fixtures are torn down
                os.waitpid(pid, 0)
        return True

    def _is_done(self, session, worker):
        """Handle a worker's next message; return whether it is the last."""
        try:
            kind, *values = worker.recv()
        except EOFError:
            raise session.Failed(f"a worker died in {self._running.get(worker)}") from None
        if kind == "next":
            worker.send(self._waiting.pop(0) if self._waiting else None)
        elif kind == "cpu":
            self._cpu_seconds.update([values])
        elif kind != "done":
            self._running[worker] = values[0] if kind == "logstart" else self._running[worker]
            _replay(session.config, kind, values)
        return kind == "done"

    def pytest_terminal_summary(self, terminalreporter):
        """Show which files cost most: on few cores CPU time, not waiting, makes the suite slow."""
        by_cost = sorted(self._cpu_seconds.items(), key=lambda cost: -cost[1])
        shown = ", ".join(f"{name} {seconds:.0f}" for name, seconds in by_cost[:_NUM_SHOWN])
        terminalreporter.write_line(f"CPU seconds: {sum(self._cpu_seconds.values()):.0f}: {shown}")

    def _fork(self, session, groups, number):
        """Fork a worker; return the connection to it and its process id."""
        ours, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            theirs.close()
            return ours, pid
        code = 1
        try:
            ours.close()
            self._before_tests(session, number)
            _work(session, groups, theirs)
            code = 0
        finally:
            os._exit(code)  # what comes after the tests is for the first process


def _work(session, groups, connection):
    """Run the groups that this worker is given."""
    plugins = session.config.pluginmanager
    capture = plugins.getplugin("capturemanager")
    capture.stop_global_capturing()  # workers would write to one file
    capture.start_global_capturing()
    plugins.unregister(plugins.getplugin("terminalreporter"))
    plugins.register(_Sender(session.config, connection))

    def items():
        name, began = None, 0.0
        while True:
            if name is not None:
                connection.send(("cpu", name, _cpu_seconds() - began))
            connection.send(("next",))
            name, began = connection.recv(), _cpu_seconds()
            if name is None:
                return
            yield from groups[name]

    try:
        # The next test is known before one is run: fixtures that both need are kept.
        for item, following in pairwise(chain(items(), [None])):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        connection.send(("done",))
    finally:
        session._setupstate.teardown_exact(None)  # after an interruption


class _Sender:
    """Sends the reports of a worker to the first process."""

    def __init__(self, config, connection):
        self._config, self._connection = config, connection

    def pytest_runtest_logstart(self, nodeid, location):
        self._connection.send(("logstart", nodeid, location))

    def pytest_runtest_logreport(self, report):
        to_serializable = self._config.hook.pytest_report_to_serializable
        self._connection.send(("logreport", to_serializable(config=self._config, report=report)))

    def pytest_runtest_logfinish(self, nodeid, location):
        self._connection.send(("logfinish", nodeid, location))


def _replay(config, kind, values):
    """Call the hook that was called in a worker."""
    if kind == "logreport":
        report = config.hook.pytest_report_from_serializable(config=config, data=values[0])
        config.hook.pytest_runtest_logreport(report=report)
    else:
        hook = getattr(config.hook, f"pytest_runtest_{kind}")
        hook(nodeid=values[0], location=values[1])


def _check_fork_is_safe():
    """Refuse to fork beside threads: a lock that one of them holds would stay locked."""
    threads = [thread.name for thread in threading.enumerate()]
    assert threads == ["MainThread"], f"collecting the tests started threads: {threads}"


def _cpu_seconds():
    """Return the CPU seconds of this process and of the ended processes that it started."""
    return sum(os.times()[:4])
