"""Virtual environments of the peers, made once."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import subprocess
import sys
import venv


@dataclasses.dataclass(frozen=True)
class Environment:
    """What a worker needs.

    Attributes:
        name: Of its folder.
        requirements: As `pip` takes them.
        imports: A module that must be there afterwards.
    """

    name: str
    requirements: tuple[str, ...]
    imports: str


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(
            "kfac-jax",
            # With JAX 0.9.2 its tracer fails: "ValueError: too many values to unpack (expected 2)".
            ("kfac-jax==0.0.8", "jax==0.9.1", "jaxlib==0.9.1", "optax"),
            "kfac_jax",
        ),
        Environment("pytorch", ("torch==2.13.0", "numpy"), "torch"),
        Environment("kfac-pytorch", ("kfac-pytorch", "torch==2.13.0", "numpy"), "kfac"),
    )
}


class Unavailable(Exception):  # noqa: N818
    """An environment cannot be made; the message is one line that says why."""


def interpreter_of(environment: Environment, folder: pathlib.Path) -> pathlib.Path:
    """The Python of an environment, which is made if it is not there.

    One whose requirements have changed is made anew.

    Args:
        environment: Which one.
        folder: Of all environments.

    Raises:
        Unavailable: `pip` cannot install the requirements, or they cannot be imported.
    """
    home = folder / environment.name
    wanted = "\n".join(environment.requirements)
    done = home / "requirements.txt"
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if done.exists() and done.read_text() == wanted:
        return python
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", *environment.requirements]
    _run(install, "pip")
    _run([str(python), "-c", f"import {environment.imports}"], "import")
    done.write_text(wanted)
    return python


def _run(command: list[str], what: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise Unavailable(f"{what}: {reason_of(ended.stderr)}")


def reason_of(output: str) -> str:
    """The line of a program's error output that says why it failed.

    That is pip's last "ERROR: …", else the last line, which ends a traceback of Python.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it failed without a word"])[-1]
