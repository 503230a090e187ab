"""Make the site's screenshots: ``make screenshots``, or ``python docs/screenshots.py [top] [generate] [wireshark]``.

Starts the real programs on real memifs, and writes into ``docs/pictures``. The screens of terminals become SVG.
Wireshark runs in Xvfb with a configuration of its own, and becomes a PNG. Nothing that it starts outlives it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).parent / "pictures"
#: The programs that a picture needs, and Debian's packages for them.
NEEDS = {
    "wireshark": "wireshark",
    "Xvfb": "xvfb",
    "xdotool": "xdotool",
    "import": "imagemagick",
    "convert": "imagemagick",
}
#: Seconds that a program has to start or to end.
PATIENCE = 60.0
MEMIFRT = (sys.executable, "-m", "memifrt")
#: Moves of the cursor, and erasing: every control sequence but colours. A screen is drawn between two of these.
_MOVES = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]|\r(?!\n)")
#: The window around a terminal's screen, without the font that rich would load from the network.
_WINDOW = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
    <style>
    .{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
    .{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
    {styles}
    </style>
    <defs>
    <clipPath id="{unique_id}-clip-terminal">
      <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
    </clipPath>
    {lines}
    </defs>
    {chrome}
    <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">
    {matrix}
    </g>
    </g>
</svg>
"""


# --- programs -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(*command: str, environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program without its output, and end it afterwards."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(what: str, done: Callable[[], bool]) -> None:
    """Wait until ``done`` returns true.

    :raises SystemExit: it takes too long.
    """
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {PATIENCE:g} s")
        time.sleep(0.1)


def succeeds(*command: str) -> bool:
    """Return whether a program ends with status 0."""
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def output(*command: str, environment: Mapping[str, str]) -> str:
    """Return what a program prints.

    :raises SystemExit: the program fails.
    """
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


# --- screens of terminals -------------------------------------------------------------------------------------------


def last_screen(
    command: tuple[str, ...], columns: int, rows: int, seconds: float, halfway: Callable[[], object] = lambda: None
) -> str:
    """Run a program in a terminal for some seconds, end it as Ctrl+C does, and return the last screen that it drew.

    :param halfway: called after half of the time.
    :raises SystemExit: the program ends early, or draws nothing.
    """
    pid, fd = pty.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}
            for name in ("COLUMNS", "LINES", "NO_COLOR"):
                environment.pop(name, None)
            os.execve(command[0], list(command), environment)
        os._exit(127)
    drawn = bytearray()
    os.set_blocking(fd, False)
    try:
        for step in (lambda: None, halfway):
            step()
            end = time.monotonic() + seconds / 2
            while time.monotonic() < end:
                with contextlib.suppress(BlockingIOError):
                    drawn += os.read(fd, 1 << 16)
                time.sleep(0.02)
    except OSError as error:  # EIO: the program has ended
        raise SystemExit(f"{' '.join(command)} ended early: {drawn.decode(errors='replace')}") from error
    finally:
        os.kill(pid, signal.SIGINT)
        os.set_blocking(fd, True)
        with contextlib.suppress(OSError):
            while os.read(fd, 1 << 16):
                pass
        os.close(fd)
        os.waitpid(pid, 0)
    # The last screen may be half drawn: take the one before.
    screens = [part for part in _MOVES.split(drawn.decode(errors="replace")) if "\n" in part]
    if len(screens) < 2:
        raise SystemExit(f"{' '.join(command)} drew nothing: {drawn.decode(errors='replace')}")
    return screens[-2].replace("\r\n", "\n").rstrip()


def draw(name: str, title: str, screen: str, columns: int) -> None:
    """Write a screen as ``name.svg``."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=columns, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text.from_ansi(screen), no_wrap=True, overflow="crop", crop=False)
        svg = console.export_svg(title=title, code_format=_WINDOW, unique_id=name)
    lines = (line.rstrip() for line in svg.splitlines())
    save(PICTURES / f"{name}.svg", "\n".join(line for line in lines if line).encode() + b"\n")


def save(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    print(f"{path}: {len(data) / 1000:.0f} kB")


@contextlib.contextmanager
def bridge() -> Iterator[None]:
    """Run a bridge between the memifs ``@lab1`` and ``@lab2``, with its stats on ``@bridge.stats``."""
    command = (*MEMIFRT, "bridge", "memif:@lab1,role=master", "memif:@lab2,role=master", "--stats", "@bridge.stats")
    with running(*command):
        wait_for("the bridge's stats", lambda: succeeds(*MEMIFRT, "top", "--once", "-i", "0.1", "@bridge.stats"))
        yield


def generate_command(seconds: int) -> tuple[str, ...]:
    """Return a run of ``memifrt generate`` through the bridge."""
    packet = ("--packet", 'Ether()/IP(dst="198.18.1.1")/UDP(dport=7)', "--size", "64,512")
    rate = ("--rate", "5kpps", "--duration", str(seconds), "--signed")
    return (*MEMIFRT, "generate", "--socket", "@lab1", "--to", "memif:@lab2", *packet, *rate)


def picture_top() -> None:
    """Draw ``memifrt top`` on the bridge under traffic, and on a responder that is pinged."""
    responder = (*MEMIFRT, "responder", "--role", "master", "--socket", "@lab3", "--stats", "@responder.stats")
    ping = (*MEMIFRT, "ping", "--socket", "@lab3", "-i", "0.01", "192.168.1.2")
    stats = ("@bridge.stats", "@responder.stats")
    with contextlib.ExitStack() as stack:
        stack.enter_context(bridge())
        stack.enter_context(running(*responder))
        wait_for("the stats", lambda: succeeds(*MEMIFRT, "top", "--once", "-i", "0.1", *stats))
        stack.enter_context(running(*ping))

        def add_traffic() -> None:
            stack.enter_context(running(*generate_command(60)))

        screen = last_screen((*MEMIFRT, "top", "-i", "0.5", *stats), 100, 32, 12, add_traffic)
    draw("top", "memifrt top @bridge.stats @responder.stats", screen, 100)


def picture_generate() -> None:
    """Draw the live view of ``memifrt generate``."""
    with bridge():
        screen = last_screen(generate_command(10), 116, 20, 8)
    draw("generate", "memifrt generate, while it runs", screen, 116)


# --- Wireshark ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def display(width: int, height: int) -> Iterator[str]:
    """Run an X server with a screen in memory, and return the name of its display."""
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", f"{width}x{height}x24", "-nolisten", "tcp"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[write])
    os.close(write)
    try:
        with os.fdopen(read) as file:
            number = file.readline().strip()
        if not number:
            raise SystemExit("Xvfb does not start")
        yield f":{number}"
    finally:
        process.terminate()
        process.wait()


def picture_wireshark() -> None:
    """Take a picture of Wireshark, which captures a ping between two memifs."""
    missing = sorted({package for program, package in NEEDS.items() if shutil.which(program) is None})
    if missing:
        raise SystemExit(f"the picture of Wireshark needs more programs; on Debian: apt install {' '.join(missing)}")
    width, height = 1200, 620
    with tempfile.TemporaryDirectory() as directory, display(width, height) as name:
        home = Path(directory)
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("WIRESHARK_")},
            **dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "TMPDIR"), directory),
            "DISPLAY": name,
            "LANG": "C.UTF-8",
            "QT_QPA_PLATFORM": "xcb",
        }
        (home / "memifrt").mkdir()
        (home / "memifrt" / "extcap.toml").write_text(
            '[interfaces]\nlab = ["@lab1,role=master", "@lab2,role=master"]\n'
        )
        output(*MEMIFRT, "extcap", "--install", environment=environment)
        wireshark = ("wireshark", "-k", "-i", "memif-lab", "-o", "privs.warn_if_elevated:FALSE")
        responder = (*MEMIFRT, "responder", "--socket", "@lab2")
        with running(*responder), running(*wireshark, environment=environment) as process:
            save(PICTURES / "wireshark.png", _window_with_a_ping(home, environment, width, height))
            # Stop the capture as a user does: then no program of Wireshark's is left.
            output("xdotool", "key", "ctrl+e", environment=environment)
            wait_for("the end of the capture", lambda: not _children(process.pid))


def _window_with_a_ping(home: Path, environment: Mapping[str, str], width: int, height: int) -> bytes:
    window = output("xdotool", "search", "--sync", "--onlyvisible", "--name", "lab", environment=environment).split()[0]
    size = ("windowsize", "--sync", window, str(width), str(height))
    output("xdotool", "windowmove", window, "0", "0", *size, "windowfocus", window, environment=environment)
    ping = ("ping", "--socket", "@lab1", "--connect-timeout", "30", "-c", "5", "-i", "0.3", "192.168.1.2")
    before = _grab(home, environment)
    output(*MEMIFRT, *ping, environment=environment)
    pictures = [before]

    def drawn() -> bool:
        time.sleep(1)
        pictures.append(_grab(home, environment))
        return pictures[-1] == pictures[-2] != before

    wait_for("the packets in Wireshark's window", drawn)
    return pictures[-1]


def _grab(home: Path, environment: Mapping[str, str]) -> bytes:
    """Return the screen as a PNG of at most 64 colours, without a date."""
    path = home / "screen.png"
    small = ("-colors", "64", "-strip", "-define", "png:exclude-chunks=date,time")
    output("import", "-window", "root", *small, f"png8:{path}", environment=environment)
    return path.read_bytes()


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


# --- the command line -----------------------------------------------------------------------------------------------

ALL = {"top": picture_top, "generate": picture_generate, "wireshark": picture_wireshark}


def main(arguments: list[str]) -> None:
    """Make the pictures with these names, or all."""
    if unknown := [name for name in arguments if name not in ALL]:
        raise SystemExit(f"{', '.join(unknown)}: there is no such picture; there are {', '.join(ALL)}")
    for name in arguments or ALL:
        ALL[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
