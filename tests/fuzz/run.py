"""Fuzz one target for a time, or try files again: `tests/fuzz/run.py TARGET SECONDS [FILE…]`.

Guided by coverage where atheris (libFuzzer) is installed, else blind. What was found worth keeping
stays in `.cache/fuzz/TARGET`, and an input that fails in `.cache/fuzz/TARGET-failed-…`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

HOME = Path(__file__).parents[2] / ".cache" / "fuzz"
#: Seconds for one input, its oracles and the instrumentation included.
INPUT_TIMEOUT_S = 30


def main(name: str, seconds: int) -> None:
    """Fuzz; the process fails with the first input that does."""
    corpus = HOME / name
    corpus.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("atheris") is not None:
        _guided(name, seconds, corpus)
    else:
        _blind(name, seconds, corpus)


def _guided(name: str, seconds: int, corpus: Path) -> None:
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["guestnet"]):
        target = importlib.import_module("targets").TARGETS[name]
    for seed in target.seeds():
        (corpus / sha256(seed).hexdigest()[:16]).write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={target.most_bytes}",
        f"-timeout={INPUT_TIMEOUT_S}",
        f"-artifact_prefix={corpus}-failed-",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.check)
    atheris.Fuzz()


def _blind(name: str, seconds: int, corpus: Path) -> None:
    print("atheris is not installed: mutating blindly", file=sys.stderr)
    target = importlib.import_module("targets").TARGETS[name]
    mutated = importlib.import_module("mutate").mutated
    ends = time.monotonic() + seconds
    for count, data in enumerate(mutated(target.seeds(), Random(), target.most_bytes), 1):
        try:
            target.check(data)
        except BaseException:
            failed = Path(f"{corpus}-failed-{sha256(data).hexdigest()[:16]}")
            failed.write_bytes(data)
            print(f"{name}: {failed}", file=sys.stderr)
            raise
        if time.monotonic() > ends:
            print(f"{name}: {count} inputs", file=sys.stderr)
            return


def again(name: str, files: list[str]) -> None:
    """Try inputs that were written down."""
    check = importlib.import_module("targets").TARGETS[name].check
    for file in files:
        check(Path(file).read_bytes())


if __name__ == "__main__":
    if sys.argv[3:]:
        again(sys.argv[1], sys.argv[3:])
    else:
        main(sys.argv[1], int(sys.argv[2]))
