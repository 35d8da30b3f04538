import os
import subprocess
import threading

from longspan.executor.launcher import default_environment

NAME = "LONGSPAN_TEST_OF_DEFAULTS"


def environment_of_a_process() -> list[str]:
    return [line for line in subprocess.check_output(["env"], text=True).splitlines() if line.startswith(NAME)]


def test_processes_started_meanwhile_have_the_defaults_and_no_others() -> None:
    with default_environment({NAME: "1", "PATH": "nowhere"}):
        assert environment_of_a_process() == [f"{NAME}=1"]
        assert NAME not in os.environ
    assert not environment_of_a_process()


def test_who_starts_processes_beside_others_has_them_too() -> None:
    """A server probes the machine and starts workers at once."""
    found: list[list[str]] = []
    begun = threading.Event()

    def start() -> None:
        begun.set()
        with default_environment({NAME: "2"}):
            second_is_in.set()
            first_is_out.wait()
            found.append(environment_of_a_process())

    second_is_in, first_is_out = threading.Event(), threading.Event()
    other = threading.Thread(target=start)
    with default_environment({NAME: "1"}):
        other.start()
        begun.wait()
        second_is_in.wait(timeout=0.1)  # it must not come in; where it does, what follows shows it
        assert environment_of_a_process() == [f"{NAME}=1"]
    first_is_out.set()
    other.join()
    assert found == [[f"{NAME}=2"]]
    assert not environment_of_a_process()


def test_a_library_that_empties_the_environment_meanwhile_does_no_harm() -> None:
    before = dict(os.environ)
    with default_environment({NAME: "1"}):
        os.environ.clear()
        os.environ.update(before)
        assert environment_of_a_process() == [f"{NAME}=1"]
    assert not environment_of_a_process()
    assert dict(os.environ) == before
