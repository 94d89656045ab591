import errno
import fcntl
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stereo_core.errors import UserError
from stereo_core.locks import held, is_held

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "results" / "a.lock"


@pytest.fixture
def other(lock):
    """Another process that holds the lock."""
    command = [sys.executable, Path(__file__).with_name("lock_holder.py"), lock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def without_locks(monkeypatch):
    """A file system of a kind that is not here: its answer to flock."""

    def answer(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return answer


def test_another_process_is_waited_for_and_it_is_said_once(lock, other, caplog):
    caplog.set_level("INFO")
    threading.Timer(0.3, other.stdin.close).start()
    with held(lock, waiting="a moment, please"):
        assert other.wait(10) == 0
    assert caplog.messages == ["a moment, please"]


def test_another_process_is_not_waited_for_where_the_caller_refuses(lock, other):
    with (
        pytest.raises(UserError, match="choose another folder"),
        held(lock, wait=0, busy=UserError("choose another folder")),
    ):
        pytest.fail("two hold it")
    assert is_held(lock) and lock.exists(), "who was refused must leave the other's lock"


def test_the_lock_goes_with_a_process_that_is_killed(lock, other):
    assert is_held(lock)
    other.kill()
    other.wait()
    assert not is_held(lock)
    with held(lock, wait=0, busy=UserError("held")):
        assert is_held(lock)


@pytest.mark.parametrize("shared", [False, True])
def test_the_file_stays_only_where_others_may_still_hold_it(lock, shared):
    with held(lock, shared=shared):
        assert lock.exists()
    assert lock.exists() == shared
    assert not is_held(lock)


def test_a_file_that_its_holder_removes_is_no_lock_for_the_next(lock, other, monkeypatch):
    """The second opens the file, the first lets go and removes it, then the second locks what is gone."""
    flock = fcntl.flock

    def late(handle, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        other.stdin.close()
        other.wait()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with held(lock):
        assert is_held(lock)


def test_a_forked_process_does_not_hold_it(lock):
    fork = multiprocessing.get_context("fork")
    end = fork.Event()
    with held(lock):
        child = fork.Process(target=end.wait)
        child.start()
    try:
        with held(lock, wait=0, busy=UserError("the child holds it")):
            assert child.is_alive()
    finally:
        end.set()
        child.join()


def test_a_forked_process_that_leaves_the_block_leaves_the_lock(lock):
    with held(lock):
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert lock.exists() and is_held(lock)
    if not child:
        os._exit(0)


@pytest.mark.parametrize("hook", [None, int])
def test_a_program_that_is_given_the_descriptor_holds_a_shared_one_too(lock, hook):
    """With a hook before it begins, it is forked another way, in which the interpreter clears up."""
    with held(lock, shared=True) as handle:
        program = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(handle,), preexec_fn=hook)
    assert is_held(lock)
    program.communicate()
    assert not is_held(lock)


@pytest.mark.parametrize("number", NO_LOCKS)
def test_without_locks_the_work_goes_on_and_the_folder_is_named_once(lock, without_locks, number, caplog):
    without_locks(number)
    for _ in range(2):
        with held(lock):
            assert not is_held(lock)
    [said] = caplog.messages
    assert said.startswith(f"{lock.parent}: ") and "no file locks" in said


@pytest.mark.parametrize("number", NO_LOCKS)
def test_without_locks_work_that_two_would_destroy_is_refused(lock, without_locks, number):
    without_locks(number)
    with pytest.raises(UserError, match=f"{lock.parent}: .* no file locks"), held(lock, vital=True):
        pytest.fail("it began")


def test_another_fault_of_the_file_system_is_no_lack_of_locks(lock, without_locks):
    without_locks(errno.EIO)
    with pytest.raises(OSError, match="Input/output"), held(lock):
        pytest.fail("it began")


def test_the_file_is_open_for_writing(lock):
    """NFS answers EBADF to an exclusive lock of one that is not."""
    with held(lock) as handle:
        assert fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
