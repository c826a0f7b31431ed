"""Makes promises on a file system until the power goes, and checks them afterwards.

promises.py make FOLDER NOTES   appends records to FOLDER/records and inserts rows into FOLDER/rows.db for ever; what has
                                been forced to the disk is noted in NOTES/records and NOTES/rows.
promises.py check FOLDER RECORDS ROWS   fails unless at least so many records and rows are there, whole and in order.
"""

import os
import sqlite3
import sys
import threading

WIDTH = 9


def record(number):
    return b"%08d\n" % number


def body(number):
    return (b"row %d " % number) * (10 + number % 60)


class Notes:
    """A number in a file outside of the guest."""

    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def note(self, number):
        os.pwrite(self.file, b"%08d" % number, 0)


def append(folder, notes):
    path = os.path.join(folder, "records")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    number = os.fstat(file).st_size // WIDTH
    os.ftruncate(file, number * WIDTH)
    while True:
        number += 1
        os.write(file, record(number))
        os.fsync(file)
        notes.note(number)


def connect(folder):
    rows = sqlite3.connect(os.path.join(folder, "rows.db"), isolation_level=None, check_same_thread=False)
    # With its other journals a commit is the end of a file, which "full" does not force to the disk.
    rows.execute("pragma journal_mode = wal")
    rows.execute("pragma synchronous = full")
    rows.execute("create table if not exists t (id integer primary key, body blob)")
    return rows


def insert(folder, notes):
    rows = connect(folder)
    number = rows.execute("select count(*) from t").fetchone()[0]
    while True:
        number += 1
        rows.execute("insert into t values (?, ?)", (number, body(number)))
        notes.note(number)


def make(folder, outside):
    def work(task, name):
        # A promise that cannot be made any more ends the load, and with it the test.
        try:
            task(folder, Notes(os.path.join(outside, name)))
        except BaseException as error:
            print(f"{name}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)

    for task, name in [(append, "records"), (insert, "rows")]:
        threading.Thread(target=work, args=(task, name)).start()


def check(folder, forced, committed):
    with open(os.path.join(folder, "records"), "rb") as file:
        found = file.read(forced * WIDTH)
    if found != b"".join(record(number) for number in range(1, forced + 1)):
        sys.exit(f"of {forced} records {len(found) // WIDTH} are there, or they are wrong")
    rows = connect(folder)
    verdict = rows.execute("pragma integrity_check").fetchone()[0]
    if verdict != "ok":
        sys.exit(f"the database: {verdict}")
    stored = rows.execute("select id, body from t order by id").fetchall()
    if len(stored) < committed:
        sys.exit(f"of {committed} rows {len(stored)} are there")
    for number, (identifier, data) in enumerate(stored, 1):
        if identifier != number or data != body(number):
            sys.exit(f"row {number} is wrong")


if sys.argv[1] == "make":
    make(*sys.argv[2:])
else:
    check(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
