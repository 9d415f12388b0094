"""The command line of the benchmarks: `scripts/bench`."""

from __future__ import annotations

import argparse
import signal
import sys
import textwrap

from .. import leaks, netns
from . import attach, forward, policy, questions, relay, rootless, start, transports

_WHAT = """
attach    attach and detach, traffic cut, all guests detached, restart and memory,
          beside the recipe of four `ip` processes (--guests 1,1000,10000)
forward   throughput and new connections through a policy of 100 rules,
          beside plain kernel masquerade (--guests 1,1000)
relay     throughput, connections, latency, memory and fairness of flows relayed by name,
          beside plain NAT, slirp4netns and pasta
rootless  the same for a guest of a site without root, with datagrams, start-up and memory
dns       the resolver's answers a second and their latency, beside dnsmasq
transports  frames on a VMM's socket, beside the same frames on the TAP
start     commands from nothing to their end, beside pasta
"""
#: The pool of the default network holds a quarter of a million; a benchmark need not.
GUESTS_MOST = 50_000
#: A machine that others use is not loaded for longer at a time.
SECONDS_MOST = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark, or list them; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.bench is None:
        print(f"scripts/bench NAME [--help]\n{_WHAT}", end="")
        return 0
    if reason := leaks.why_no_root():
        print(f"bench: cannot run here: {reason}", file=sys.stderr)
        return 2
    netns.reap_stale()
    # Told to end, it unwinds and leaves nothing behind, as it does on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if options.bench == "attach":
        attach.run(options.guests, options.samples, profile=options.profile, say=_say, note=_note)
    elif options.bench == "forward":
        forward.run(
            options.guests,
            rounds=options.rounds,
            seconds=options.seconds,
            rules=options.rules,
            policies=options.policies,
            say=_say,
            note=_note,
        )
    elif options.bench == "start":
        start.run(rounds=options.rounds, say=_say, note=_note)
    else:
        benches = {
            "relay": relay.run,
            "rootless": rootless.run,
            "dns": questions.run,
            "transports": transports.run,
        }
        benches[options.bench](rounds=options.rounds, seconds=options.seconds, say=_say, note=_note)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=textwrap.dedent(_WHAT),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    benches = parser.add_subparsers(dest="bench", metavar="NAME")
    one = benches.add_parser("attach", help="give guests their network, and take it away")
    one.add_argument("--guests", type=_sizes, default=_sizes("1,1000,10000"), metavar="N,…")
    one.add_argument("--samples", type=_count, default=attach.SAMPLES, help="calls of each kind")
    one.add_argument("--profile", action="store_true", help="where the time goes, by phase")
    two = benches.add_parser("forward", help="packets and connections through the rules")
    two.add_argument("--guests", type=_sizes, default=_sizes("1,1000"), metavar="N,…")
    two.add_argument("--rounds", type=_count, default=forward.ROUNDS)
    two.add_argument("--seconds", type=float, default=forward.SECONDS, help="each side of a round")
    two.add_argument("--rules", type=_count, default=policy.RULES, help="of each policy")
    two.add_argument("--policies", type=_count, default=1, help="distinct ones among the guests")
    three = benches.add_parser("relay", help="flows that the gateway relays by name")
    three.add_argument("--rounds", type=_count, default=relay.ROUNDS)
    three.add_argument("--seconds", type=_seconds, default=relay.SECONDS, help="of each figure")
    six = benches.add_parser("rootless", help="guests of a site without root")
    six.add_argument("--rounds", type=_count, default=rootless.ROUNDS)
    six.add_argument("--seconds", type=_seconds, default=rootless.SECONDS, help="of each figure")
    four = benches.add_parser("dns", help="questions that the gateway answers")
    four.add_argument("--rounds", type=_count, default=questions.ROUNDS)
    four.add_argument("--seconds", type=_seconds, default=questions.SECONDS, help="of each figure")
    five = benches.add_parser("transports", help="frames on a VMM's socket")
    five.add_argument("--rounds", type=_count, default=transports.ROUNDS)
    five.add_argument("--seconds", type=_seconds, default=transports.SECONDS, help="of each figure")
    six = benches.add_parser("start", help="commands from nothing to their end")
    six.add_argument("--rounds", type=_count, default=start.ROUNDS)
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= SECONDS_MOST:
        raise argparse.ArgumentTypeError(f"more than 0, and at most {SECONDS_MOST:g} s")
    return seconds


def _sizes(text: str) -> list[int]:
    sizes = [_count(part) for part in text.split(",")]
    if max(sizes) > GUESTS_MOST:
        raise argparse.ArgumentTypeError(f"at most {GUESTS_MOST:,} guests")
    return sizes


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def _say(text: str) -> None:
    print(text, flush=True)


def _note(text: str) -> None:
    """How far it is, for whoever waits; not part of the result."""
    print(f"bench: {text} …", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
