"""The DNS room: what guests ask, what upstreams answer, and what guestnet remembers of it.

The boundary: everything in here is fed by bytes that a hostile guest or a lying upstream wrote, and
nothing in here touches a socket, a clock or a source of randomness. `now` (growing seconds) and
random bits are arguments; messages go in and out as `bytes`. Of hostile bytes only `BadQuestion`
and `BadResponse` come out; a `ValueError` means that our own code asked for nonsense. Whatever
grows has a cap with a name: `Cache` and `Pins` evict their oldest, messages beyond a limit are
refused. Deciding which names a guest may ask for is the policy's; sending is the gateway's.

A question's way:

    question = read_question(datagram)                       # or failure(bad)
    local.answer(question) or cache.get(question.key, now)   # or policy says no: refusal(…)
    asked = ask(question.name, question.qtype, id, bits)     # to an upstream
    response = read_response(wire, asked)                    # response.addresses are judged …
    reply = build_answer(question, response, kept)           # … and those kept are told …
    pins.learn(guest, question.name, kept_until, now)        # … and pinned
    fit(reply, question, question.udp_limit_bytes)

The package shares its last name with dnspython (`import dns`), which the tests hold it against and
the code does not use: `records` says why.
"""

from .answers import addresses, failure, fit, no_data, pointer, refusal, truncated
from .cache import STALE_AFTER_S, STALE_REST_S, STALE_TTL_S, Cache, Entry
from .codes import VERSIONS, Address, Ede, Rcode, Rtype
from .faults import BadQuestion, BadResponse
from .local import LOCAL_TTL_S, Found, LocalRecords
from .names import canonical, reversed_address
from .pins import GRACE_S, Pins
from .question import MAX_TCP_QUERY_BYTES, MAX_UDP_QUERY_BYTES, Edns, Question, read_question
from .records import Record
from .resolvers import CANARY_NAMES, DOH_NAMES, is_encrypted_resolver
from .rewrite import build_answer, with_aliases
from .upstream import CASE_BITS, MAX_CNAMES, MAX_RECORDS, Response, ask, read_response

__all__ = [
    "CANARY_NAMES",
    "CASE_BITS",
    "DOH_NAMES",
    "GRACE_S",
    "LOCAL_TTL_S",
    "MAX_CNAMES",
    "MAX_RECORDS",
    "MAX_TCP_QUERY_BYTES",
    "MAX_UDP_QUERY_BYTES",
    "STALE_AFTER_S",
    "STALE_REST_S",
    "STALE_TTL_S",
    "VERSIONS",
    "Address",
    "BadQuestion",
    "BadResponse",
    "Cache",
    "Ede",
    "Edns",
    "Entry",
    "Found",
    "LocalRecords",
    "Pins",
    "Question",
    "Rcode",
    "Record",
    "Response",
    "Rtype",
    "addresses",
    "ask",
    "build_answer",
    "canonical",
    "failure",
    "fit",
    "is_encrypted_resolver",
    "no_data",
    "pointer",
    "read_question",
    "read_response",
    "refusal",
    "reversed_address",
    "truncated",
    "with_aliases",
]
