#!/usr/bin/env python3
"""Ledger of SQLite transactions: a writer that notes what was committed, and a checker of the database.

The content after transaction n is a function of (seed, n) alone: the newest KEEP entries, and a chain of check sums
over all. So a database that is right for some n proves that just the transactions 1..n happened, each as a whole.
Notes, one line per event, appended outside of the file system under test:

    B n        transaction n is about to begin        A n        its commit has returned
    E text     SQLite or the system reported an error; the writer ends

`synchronous` is FULL with a write-ahead log and EXTRA with a rollback journal: FULL does not sync the directory after
the journal was unlinked, so by SQLite's own rules the newest commit may be rolled back when the device is lost.

A check makes NOTES.pause, and the writer waits between two transactions while it is there: with a rollback journal
SQLite lets readers starve.

Usage: sqlite_ledger.py write DATABASE NOTES SEED wal|delete   until standard input ends; status 1 after an error
       sqlite_ledger.py check DATABASE NOTES SEED              prints n; status 1 and the reason if something is wrong
"""

import contextlib
import hashlib
import os
import select
import sqlite3
import sys
import time
from pathlib import Path

KEEP = 300
SYNCHRONOUS = {"wal": "FULL", "delete": "EXTRA"}
PATIENCE_S = 120.0
PAUSE_S = 0.003
ONE_SUM = 32


def body(seed: int, n: int) -> bytes:
    """What transaction n inserts: 32 bytes to 6 KiB."""
    head = hashlib.sha256(f"{seed}:{n}".encode()).digest()
    return head * (1 + head[0] % 192)


def chain_at(seed: int, n: int) -> bytes:
    """The check sum over the transactions 1..n."""
    chain = bytes(ONE_SUM)
    for i in range(1, n + 1):
        chain = hashlib.sha256(chain + hashlib.sha256(body(seed, i)).digest()).digest()
    return chain


def noted(notes: Path) -> tuple[int, int, str]:
    """(highest committed, highest begun, last error) of the notes; a line cut by a kill is dropped."""
    committed = begun = 0
    error = ""
    for line in notes.read_text().split("\n")[:-1] if notes.exists() else ():
        kind, _, rest = line.partition(" ")
        if kind == "A":
            committed = max(committed, int(rest))
        elif kind == "B":
            begun, error = max(begun, int(rest)), ""
        elif kind == "E":
            error = rest
    return committed, begun, error


def open_database(path: Path) -> sqlite3.Connection:
    """Waits for locks; transactions are begun and committed by hand."""
    return sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None)


def prepare(db: sqlite3.Connection, mode: str) -> int:
    """Tables, journal mode; returns the number of the last transaction that is there."""
    db.execute(f"PRAGMA synchronous = {SYNCHRONOUS[mode]}")
    got = db.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0]
    if got != mode:
        raise SystemExit(f"SQLite took journal mode {got}, not {mode}: this proves nothing")
    with contextlib.suppress(sqlite3.OperationalError):
        return int(db.execute("SELECT n FROM state").fetchone()[0])
    db.execute("BEGIN IMMEDIATE")
    db.execute("CREATE TABLE entry (n INTEGER PRIMARY KEY, body BLOB NOT NULL, sum BLOB NOT NULL)")
    db.execute("CREATE TABLE state (n INTEGER NOT NULL, chain BLOB NOT NULL)")
    db.execute("INSERT INTO state VALUES (0, ?)", (bytes(ONE_SUM),))
    db.execute("COMMIT")
    return 0


def transact(db: sqlite3.Connection, seed: int, n: int) -> None:
    """Transaction n."""
    data = body(seed, n)
    digest = hashlib.sha256(data).digest()
    db.execute("BEGIN IMMEDIATE")
    before, chain = db.execute("SELECT n, chain FROM state").fetchone()
    if before != n - 1:
        raise sqlite3.DatabaseError(f"transaction {n} follows {before}")
    db.execute("INSERT INTO entry VALUES (?, ?, ?)", (n, data, digest))
    db.execute("DELETE FROM entry WHERE n <= ?", (n - KEEP,))
    db.execute("UPDATE state SET n = ?, chain = ?", (n, hashlib.sha256(chain + digest).digest()))
    db.execute("COMMIT")


def pause_file(notes: Path) -> Path:
    """While it is there, no transaction is begun."""
    return notes.with_suffix(".pause")


def write(database: Path, notes: Path, seed: int, mode: str) -> int:
    """The writer program."""
    note = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        with contextlib.closing(open_database(database)) as db:
            n = prepare(db, mode)
            while not select.select([sys.stdin], [], [], 0)[0]:
                time.sleep(PAUSE_S)
                if pause_file(notes).exists():
                    continue
                n += 1
                os.write(note, b"B %d\n" % n)
                transact(db, seed, n)
                os.write(note, b"A %d\n" % n)
    except (sqlite3.Error, OSError) as problem:
        os.write(note, f"E {problem}\n".encode())
        return 1
    return 0


def forget_pages(database: Path) -> None:
    """The check must read the device, not the page cache."""
    for file in (database, Path(f"{database}-wal"), Path(f"{database}-journal")):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(file, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def contents(database: Path) -> tuple[list[str], int, bytes, list[tuple[int, bytes, bytes]]]:
    """(answers of integrity_check, n, chain, entries) of one moment."""
    with contextlib.closing(open_database(database)) as db:
        db.execute("BEGIN")
        sound = [row[0] for row in db.execute("PRAGMA integrity_check")]
        n, chain = db.execute("SELECT n, chain FROM state").fetchone()
        return sound, n, chain, db.execute("SELECT n, body, sum FROM entry ORDER BY n").fetchall()


def check(database: Path, notes: Path, seed: int) -> int:
    """Every committed transaction is there, and nothing else; returns n. A writer may be running."""
    committed = noted(notes)[0]
    pause_file(notes).touch()
    try:
        forget_pages(database)
        sound, n, chain, entries = contents(database)
    finally:
        pause_file(notes).unlink()
    begun = noted(notes)[1]
    if sound != ["ok"]:
        raise AssertionError(f"integrity_check of {database.name}: {sound[:5]}")
    if not committed <= n <= begun:
        raise AssertionError(f"{database.name} ends with transaction {n}; committed were {committed}, begun {begun}")
    right = [(i, body(seed, i), hashlib.sha256(body(seed, i)).digest()) for i in range(max(1, n - KEEP + 1), n + 1)]
    if entries != right:
        wrong = sorted({entry[0] for entry in set(entries) ^ set(right)})
        raise AssertionError(f"{database.name}: entries {wrong[:10]} are missing or wrong (n = {n})")
    if chain != chain_at(seed, n):
        raise AssertionError(f"{database.name}: the check sum over 1..{n} is wrong")
    return n


def main(argv: list[str]) -> int:
    """See the module."""
    what, database, notes, seed = argv[1], Path(argv[2]), Path(argv[3]), int(argv[4])
    if what == "write":
        return write(database, notes, seed, argv[5])
    try:
        print(check(database, notes, seed))
    except (AssertionError, sqlite3.Error) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
