"""The store: one file that nobody else reads, that says what it is, and that outlives a death."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import time
from contextlib import closing
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from guestnet.errors import HostError
from guestnet.model import Attachment, NetworkSpec, Topology
from guestnet.store import Lease, LeaseState, NetworkRecord, SqliteStore
from guestnet.store.sqlite import SCHEMA_VERSION


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guestnet.db"


def lease(slot: int, guest: str = "vm", state: LeaseState = LeaseState.ATTACHED) -> Lease:
    attachment = Attachment(
        guest=guest, network="default", topology=Topology.ROUTED, generation=slot + 1, slot=slot,
        tap=f"gn1-{slot:x}", mac="02:6d:73:00:00:02", ipv4=IPv4Interface("172.16.0.2/30"),
        ipv6=None, gateway_ipv4=None, gateway_ipv6=None, mtu=1500, dns=(), policy="public",
    )  # fmt: skip
    return Lease("default", slot, guest, slot + 1, state, 1000.5, attachment)


def test_the_file_is_its_owners_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        store = SqliteStore(path)
        store.write([lease(1)])
    finally:
        os.umask(before)
    for file in path.parent.iterdir():  # the write-ahead log holds the same secrets
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    store.close()
    store.close()  # a second time does nothing


def test_what_is_written_is_there_at_the_next_start(path: Path) -> None:
    store = SqliteStore(path)
    record = store.add_network(NetworkSpec.read({"mtu": 1400, "dns": ["9.9.9.9"]}))
    store.write([lease(1), lease(2, "é\n'; DROP TABLE leases; --")])
    store.take_note("boot-id", "x")
    store.close()
    store = SqliteStore(path)
    assert store.networks() == [record]
    assert store.leases() == [lease(1), lease(2, "é\n'; DROP TABLE leases; --")]
    assert (store.note("boot-id"), store.note("other")) == ("x", None)
    store.close()


def test_a_slot_has_one_row_whoever_had_it(path: Path) -> None:
    store = SqliteStore(path)
    for number in range(100):
        store.write([lease(7, f"vm-{number}")])
    assert [each.guest for each in store.leases()] == ["vm-99"]
    store.close()


def test_networks_get_the_lowest_free_number(path: Path) -> None:
    store = SqliteStore(path)
    names = ("a", "b", "c")
    assert [store.add_network(NetworkSpec(name=name)).number for name in names] == [1, 2, 3]
    store.remove_network("b")
    assert store.add_network(NetworkSpec(name="d")) == NetworkRecord(2, NetworkSpec(name="d"))
    store.close()


def test_a_network_takes_its_leases_along(path: Path) -> None:
    store = SqliteStore(path)
    store.add_network(NetworkSpec())
    store.write([lease(1)])
    store.remove_network("default")
    assert (store.networks(), store.leases()) == ([], [])
    store.close()


def test_several_leases_are_written_all_or_none(path: Path) -> None:
    store = SqliteStore(path)
    store.write([lease(1)])
    impossible = Lease("default", 3, "vm", 1, LeaseState.ATTACHED, float("nan"))  # NULL to SQLite
    with pytest.raises(HostError, match="sqlite write"):
        store.write([lease(2), impossible])
    assert [each.slot for each in store.leases()] == [1]
    store.write([lease(2)])  # and the connection is usable still
    assert len(store.leases()) == 2
    store.close()


# --- what is refused ------------------------------------------------------------------------------


def test_a_newer_schema_is_refused_untouched(path: Path) -> None:
    SqliteStore(path).close()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    database.close()
    with pytest.raises(HostError, match="written by a newer guestnet") as refused:
        SqliteStore(path)
    assert refused.value.target == str(path)
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)
    database.close()


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to be one" * 50, b"\0" * 4096], ids=[
        "text", "zeros"]
)  # fmt: skip
def test_a_file_that_is_no_database_is_named_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(HostError) as refused:
        SqliteStore(path)
    assert refused.value.target == str(path)
    assert "not a database" in str(refused.value)
    assert path.read_bytes() == content


def corrupted(path: Path, sql: str) -> None:
    """Change what stands in the file behind the store's back."""
    store = SqliteStore(path)
    store.add_network(NetworkSpec())
    store.write([lease(1)])
    store.close()
    database = sqlite3.connect(path)
    with database:
        database.execute(sql)
    database.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE leases SET attachment = '{'",
        "UPDATE leases SET attachment = '{\"guest\": 7}'",
        "UPDATE leases SET state = 'dancing'",
        "UPDATE networks SET spec = '[]'",
        "DROP TABLE leases",
        "ALTER TABLE leases RENAME COLUMN guest TO vm",
    ],
)
def test_rows_that_cannot_be_read_are_the_machines_fault_and_the_file_is_named(
    path: Path, sql: str
) -> None:
    corrupted(path, sql)
    with pytest.raises(HostError) as refused:
        read_all(path)
    assert refused.value.target == str(path)


def read_all(path: Path) -> None:
    """What a start reads."""
    with closing(SqliteStore(path)) as store:
        store.networks()
        store.leases()


def test_torn_pages_are_named(path: Path) -> None:
    store = SqliteStore(path)
    for slot in range(2000):
        store.write([lease(slot)])
    store.close()
    content = bytearray(path.read_bytes())
    content[8192:-4096] = os.urandom(len(content) - 12288)
    path.write_bytes(content)
    with pytest.raises(HostError) as refused:
        read_all(path)
    assert refused.value.target == str(path)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "guestnet.db"
    with pytest.raises(HostError, match="ENOENT") as refused:
        SqliteStore(path)
    assert refused.value.target == str(path)


# --- death ----------------------------------------------------------------------------------------


def test_killed_between_and_during_writes_it_keeps_every_write_that_returned(path: Path) -> None:
    """The child tells of each write once it has returned; after its death all of them are there."""
    for round_ in range(15):
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                store = SqliteStore(path)
                for number in range(100_000):
                    # Two leases a time: never one without the other.
                    store.write([lease(0, f"{round_}-{number}"), lease(1, f"{round_}-{number}")])
                    os.write(tell, b"%d\n" % number)
            finally:
                os._exit(1)
        os.close(tell)
        first = os.read(told, 16)
        time.sleep(0.003 * (round_ % 5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        rest = b""
        while chunk := os.read(told, 1 << 16):
            rest += chunk
        os.close(told)
        returned = int((first + rest).split()[-1])
        store = SqliteStore(path)
        kept = {each.guest for each in store.leases()}
        store.close()
        # The write that was under way may have been done, too.
        assert kept in ({f"{round_}-{returned}"}, {f"{round_}-{returned + 1}"})
