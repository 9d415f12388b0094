"""How long a network takes that is made for one command: `python -m lab.bench.starts ROUNDS`.

To be run as an ordinary user. JSON comes out: for each who makes one, the seconds from its start
to the first byte of a server with a name, those to the end of a command that does nothing, and the
processor's seconds of that.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

from .contenders import NAME
from .ends import HELLO

#: The names of the figures.
BYTE, NOTHING, CPU = "byte", "true", "cpu"
_PATIENCE_S = 20.0
#: No round is begun after so long, but the first that counts.
_BUDGET_S = 30.0
_BYTE = ["bash", "-c", f"read -rn1 byte < /dev/tcp/{NAME}/{HELLO.start} && echo $byte"]
#: It is attached to a namespace that somebody made, and says when it is ready.
_SLIRP4NETNS = """
cd "$(mktemp -dp "$HOME")" && mkfifo made ready
unshare --map-root-user --net bash -c 'echo > made; read -rn1 < ready; exec "$@"' - "$@" &
guest=$!
read -r < made
slirp4netns --configure --mtu 65520 --ready-fd 3 "$guest" tap0 3> ready > /dev/null 2>&1 &
wait "$guest"
status=$?
kill $!
wait
rm -r "$PWD"
exit "$status"
"""
_CLOSED = [word for option in "tuTU" for word in (f"-{option}", "none")]

#: What is written before a command to give it a network.
MAKERS: dict[str, list[str]] = {
    "the machine's own": [],
    "guestnet run": ["guestnet", "run", "--allow", f"{NAME}:{HELLO.start}", "--"],
    "slirp4netns": ["bash", "-c", _SLIRP4NETNS, "-"],
    "pasta": ["pasta", "--quiet", "--config-net", "--ipv4-only", *_CLOSED, "--"],
}


def to_first_byte(maker: Sequence[str]) -> float:
    """Seconds until the server's byte is here."""
    begin = time.perf_counter()
    with _started([*maker, *_BYTE]) as process:
        assert process.stdout is not None
        byte = process.stdout.read(1)
        took = time.perf_counter() - begin
        _, said = process.communicate(timeout=_PATIENCE_S)
    if byte != b"k":
        raise ConnectionError(f"{maker[0]}: not the far end's byte: {said.decode()}")
    return took


def to_end(maker: Sequence[str]) -> dict[str, float]:
    """Seconds of a command that does nothing, and what they took of the processors."""
    begin, used = time.perf_counter(), _cpu()
    with _started([*maker, "true"]) as process:
        _, said = process.communicate(timeout=_PATIENCE_S)
    if process.returncode:
        raise RuntimeError(f"{maker[0]}: status {process.returncode}: {said.decode()}")
    return {NOTHING: time.perf_counter() - begin, CPU: _cpu() - used}


def _started(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)


def _cpu() -> float:
    """Of all processes that were started here and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(rounds: int) -> None:
    """Take turns, once without counting; on a machine that has no time, fewer times."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in MAKERS}
    begin = time.monotonic()
    for number in range(rounds + 1):
        if number > 1 and time.monotonic() - begin > _BUDGET_S:
            break
        for name, maker in MAKERS.items():
            figures = {BYTE: to_first_byte(maker), **to_end(maker)}
            if number:
                for key, value in figures.items():
                    found[name].setdefault(key, []).append(value)
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
