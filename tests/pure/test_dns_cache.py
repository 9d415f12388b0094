"""The cache: a hit is the stored answer, grown older, as if made for the one who asks."""

from __future__ import annotations

from ipaddress import ip_address

import dns.edns
import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.dns import Cache, Question, Rcode, read_question, refusal, truncated
from guestnet.dns.cache import ENTRY_BYTES, MAX_STALE_S, STALE_TTL_S

CHAIN = [
    "www.example.com. 300 IN CNAME a.cdn.net.",
    "a.cdn.net. 60 IN A 192.0.2.1",
    "a.cdn.net. 60 IN A 192.0.2.2",
]


def asked(name: str = "www.example.com", qtype: str = "A", **options: object) -> Question:
    return read_question(dns.message.make_query(name, qtype, **options).to_wire())  # type: ignore[arg-type]


def reply(question: Question, lines: list[str] = CHAIN) -> bytes:
    query = dns.message.make_query(
        question.name,
        dns.rdatatype.RdataType.make(question.qtype),
        use_edns=0 if question.edns else False,
    )
    message = dns.message.make_response(query, recursion_available=True)
    message.answer = [dns.rrset.from_text(*line.split(None, 4)) for line in lines]  # type: ignore[arg-type]
    return message.to_wire()


def read(wire: bytes | None) -> dns.message.Message:
    assert wire is not None
    return dns.message.from_wire(wire)


def hit(cache: Cache, question: Question, now: float) -> bytes | None:
    """The reply to a question, if a fresh one is stored."""
    entry = cache.get(question.key, now)
    return None if entry is None else entry.reply(question, now)


def ttls(wire: bytes | None) -> list[int]:
    return [rrset.ttl for rrset in read(wire).answer]


def test_a_hit_bears_the_askers_id_case_and_rd() -> None:
    cache = Cache()
    cache.put(asked(id=1), reply(asked()), 60, now=100.0)
    message = read(hit(cache, asked("wWw.eXample.com", id=2, flags=0), now=100.0))
    assert message.id == 2
    assert message.question[0].name.to_text() == "wWw.eXample.com."
    assert not message.flags & dns.flags.RD
    assert message.answer[0].name.to_text() == "wWw.eXample.com."
    assert read(hit(cache, asked(), now=100.0)).flags & dns.flags.RD


@given(
    st.lists(st.integers(0, 100_000), min_size=1, max_size=5),
    st.lists(st.floats(0, 59.9), min_size=1, max_size=5),
    st.booleans(),
)
def test_ttls_count_down_with_the_clock(lives: list[int], ages: list[float], edns: bool) -> None:
    cache = Cache()
    question = asked(use_edns=0 if edns else False)
    lines = [f"n{i}.example.com. {ttl} IN A 192.0.2.1" for i, ttl in enumerate(lives)]
    cache.put(question, reply(question, lines), 60, now=5.5)
    for age in ages:
        found = hit(cache, question, 5.5 + age)
        expected = [max(ttl - int(5.5 + age - 5.5), 0) for ttl in lives]
        assert ttls(found) == expected
        assert read(found).edns == (0 if edns else -1)


def test_it_is_gone_when_its_time_is_over() -> None:
    cache = Cache()
    cache.put(asked(), reply(asked()), 60, now=0.0)
    assert hit(cache, asked(), 59.9) is not None
    assert hit(cache, asked(), 60.0) is None
    assert (len(cache), cache.bytes_held) == (0, 0)


def test_an_answer_with_opt_is_not_for_one_without() -> None:
    cache = Cache()
    cache.put(asked(use_edns=0), reply(asked(use_edns=0)), 60, now=0.0)
    assert hit(cache, asked(), 1.0) is None
    assert hit(cache, asked(use_edns=0), 1.0) is not None


@pytest.mark.parametrize("lifetime_s", [0, -1])
def test_what_may_not_live_is_not_kept(lifetime_s: int) -> None:
    cache = Cache()
    cache.put(asked(), reply(asked()), lifetime_s, now=0.0)
    assert len(cache) == 0


@pytest.mark.parametrize(
    "wire", [truncated(asked()), refusal(asked(), Rcode.SERVFAIL)], ids=["cut", "failed"]
)
def test_what_is_no_answer_is_not_kept(wire: bytes) -> None:
    cache = Cache()
    cache.put(asked(), reply(asked()), 60, now=0.0)
    cache.put(asked(), wire, 60, now=0.0)
    assert (len(cache), cache.bytes_held) == (0, 0)


def test_an_entry_knows_where_its_answer_leads() -> None:
    cache = Cache()
    cache.put(asked(), reply(asked()), 60, 10.0, (ip_address("192.0.2.1"),))
    entry = cache.get(asked().key, 20.0)
    assert entry is not None
    assert (entry.addresses, entry.expires_at) == ((ip_address("192.0.2.1"),), 70.0)


def test_a_new_answer_takes_the_old_ones_place() -> None:
    cache = Cache()
    cache.put(asked(), reply(asked()), 60, now=0.0)
    held = cache.bytes_held
    cache.put(asked(), reply(asked()), 60, now=30.0)
    assert (len(cache), cache.bytes_held) == (1, held)
    assert ttls(hit(cache, asked(), 31.0)) == [299, 59]


def test_the_least_recently_used_goes_first() -> None:
    cache = Cache(max_entries=2)
    for name in ("a", "b"):
        cache.put(asked(name), reply(asked(name)), 60, now=0.0)
    assert hit(cache, asked("a"), 1.0)
    cache.put(asked("c"), reply(asked("c")), 60, now=2.0)
    assert [hit(cache, asked(name), 3.0) is not None for name in "abc"] == [True, False, True]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=60))
def test_it_never_holds_more_than_it_may(puts: list[tuple[int, int]]) -> None:
    cache = Cache(max_bytes=5 * ENTRY_BYTES, max_entries=4)
    for number, records in puts:
        question = asked(f"n{number}")
        lines = [f"n{i}.example.com. 60 IN A 192.0.2.1" for i in range(records)]
        cache.put(question, reply(question, lines), 60, now=0.0)
        assert len(cache) <= 4
        assert 0 <= cache.bytes_held <= 5 * ENTRY_BYTES
    cache.clear()
    assert (len(cache), cache.bytes_held) == (0, 0)


@pytest.mark.parametrize("edns", [False, 0], ids=["plain", "EDNS"])
def test_stale_answers_say_so_and_are_only_for_those_who_ask_for_them(edns: bool | int) -> None:
    cache, question = Cache(serve_stale_s=1e9), asked(use_edns=edns)
    cache.put(question, reply(question), 60, now=0.0)
    assert cache.get(question.key, 61.0) is None
    entry = cache.stale(question.key, 61.0)
    assert entry is not None
    stale = read(entry.stale_reply(question))
    assert {rrset.ttl for rrset in stale.answer} == {STALE_TTL_S}
    assert [str(each) for rrset in stale.answer for each in rrset] == [
        "a.cdn.net.", "192.0.2.1", "192.0.2.2"
    ]  # fmt: skip
    errors = [o.code for o in stale.options if isinstance(o, dns.edns.EDEOption)]
    assert errors == ([] if edns is False else [dns.edns.EDECode.STALE_ANSWER])
    assert cache.stale(question.key, 60.0 + MAX_STALE_S) is None
    assert hit(cache, question, 60.0 + MAX_STALE_S) is None
    assert len(cache) == 0


def test_without_the_option_nothing_is_stale() -> None:
    cache = Cache()
    cache.put(asked(), reply(asked()), 60, now=0.0)
    assert cache.stale(asked().key, 61.0) is None


@pytest.mark.parametrize(
    "wire",
    [b"", reply(asked("other.com")), reply(asked())[:-1], reply(asked()) + b"\0"],
    ids=["nothing", "another question", "cut", "leftovers"],
)
def test_only_a_reply_to_the_question_can_be_stored(wire: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a reply|bad DNS"):
        Cache().put(asked(), wire, 60, now=0.0)


@given(st.integers(0, 70 * 1024), st.integers(0, 70 * 1024))
def test_a_reply_says_until_when_it_is_the_same(stored: int, wait: int) -> None:
    stored_at, wait_s = stored / 1024, wait / 1024  # exact, whatever is added and subtracted
    cache, question = Cache(), asked()
    cache.put(question, reply(question), 60, now=stored_at)
    now = stored_at + wait_s
    entry = cache.get(question.key, now)
    if entry is None:
        return
    until = entry.same_until(now)
    assert now < until <= min(now + 1, stored_at + 60)
    given = entry.reply(question, now)
    assert entry.reply(question, (now + until) / 2) == given
    assert cache.get(question.key, until) is None or entry.reply(question, until) != given
