"""Put ``memifrt extcap`` where Wireshark finds it, and remove it again.

Owns the small program in Wireshark's folder, and how to find that folder.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from memifrt.capture.whole_file import write_whole
from memifrt.errors import ConfigError, MemifOSError, os_error

#: The name of the program.
PROGRAM = "memifrt-extcap"
#: By this line we recognize our own program.
_MARK = "# Written by memifrt extcap --install."
#: Seconds that tshark has to name its folders.
_PATIENCE = 20
_ASKED = ("tshark", "wireshark")

# With -c, the first entry of sys.path is the current folder. Wireshark may have been started anywhere, so that entry is
# removed before anything is imported.
_START = "import sys; sys.path[:] = filter(None, sys.path); from memifrt_command import main; sys.exit(main())"


def folder() -> Path:
    """Return Wireshark's folder for the user's extcap programs.

    Wireshark names it since 4.2. Before, it is below the folder of the user's configuration, which it names, too.
    """
    named = _named_folders()
    for line, found in named.items():
        if line.lower().startswith("personal extcap"):
            return Path(found)
    if "Personal configuration" in named:
        return Path(named["Personal configuration"]) / "extcap"
    return Path(os.path.expanduser("~")) / ".local" / "lib" / "wireshark" / "extcap"


def _named_folders() -> dict[str, str]:
    for program in _ASKED:
        path = shutil.which(program)
        if path is None:
            continue
        try:
            done = subprocess.run(
                [path, "-G", "folders"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        lines = [line.partition(":") for line in done.stdout.splitlines()]
        return {name.strip(): value.strip() for name, _, value in lines if value.strip()}
    return {}


def install(directory: str) -> Path:
    """Write the program, and return its path.

    :param directory: the folder; empty for the one that Wireshark names.
    :raises ConfigError: another program has the name.
    :raises MemifOSError: the file cannot be written.
    """
    path = _path(directory)
    text = f'#!/bin/sh\n{_MARK}\nexec {shlex.quote(sys.executable)} -c {shlex.quote(_START)} extcap "$@"\n'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_ours(path)
        write_whole(str(path), text.encode())  # Wireshark must not run half of it
        mode = path.stat().st_mode
        path.chmod(stat.S_IMODE(mode) | (mode & 0o444) >> 2)  # everybody who may read it may run it
    except MemifOSError:
        raise
    except OSError as error:
        raise os_error(f"cannot write {path}", error, path=str(path)) from error
    return path


def uninstall(directory: str) -> Path:
    """Remove the program, and return its path.

    :raises ConfigError: it is not there, or another program has the name.
    :raises MemifOSError: the file cannot be removed.
    """
    path = _path(directory)
    try:
        if not path.exists():
            raise ConfigError(f"{path} is not there: memifrt extcap --install writes it")
        _check_ours(path)
        path.unlink()
    except OSError as error:
        raise os_error(f"cannot remove {path}", error, path=str(path)) from error
    return path


def _path(directory: str) -> Path:
    return (Path(directory) if directory else folder()).absolute() / PROGRAM


def _check_ours(path: Path) -> None:
    if path.exists() and _MARK not in path.read_text(errors="replace"):
        raise ConfigError(f"{path} is not from memifrt extcap --install; move it away first")
