"""Makes promises on a file system that two nodes have mounted, and checks them.

cluster.py make FOLDER NAME NOTES   until NOTES/stop exists: appends records to FOLDER/NAME/records and, in turns with the other
                                    node, to FOLDER/common/records, and puts files into FOLDER/common by renaming them; what
                                    has been forced to the disk is noted in NOTES/own, NOTES/shared and NOTES/renamed.
cluster.py check FOLDER NAME OWN SHARED RENAMED   fails unless at least so much of node NAME is there, whole and in order.
"""

import ctypes
import fcntl
import os
import sys
import threading

# Divides a page, so that a record is in one.
WIDTH = 16
# Files that take each other's place.
SLOTS = 20


def record(name, number):
    return b"%-6s%09d\n" % (name.encode(), number)


def body(name, number):
    return record(name, number) * (1 + number * 37 % 700)


class Notes:
    """A number in a file outside of the guest."""

    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def note(self, number):
        os.pwrite(self.file, b"%09d" % number, 0)


def records_of(name, data, where):
    """The number of the last of a node's records, which have to be whole and in order."""
    if len(data) % WIDTH:
        sys.exit(f"{where} ends within a record")
    last = 0
    for begin in range(0, len(data), WIDTH):
        found = data[begin : begin + WIDTH]
        if found[:6].strip() == name.encode():
            last += 1
            if found != record(name, last):
                sys.exit(f"{where} has {found!r} at {begin} in the place of record {last} of {name}")
        elif found[-1:] != b"\n" or not found[6:15].isdigit():
            sys.exit(f"{where} has {found!r} at {begin}")
    return last


def read(path):
    with open(path, "rb") as file:
        return file.read()


def slot(folder, name, number):
    return os.path.join(folder, "common", f"{name}.{number % SLOTS}")


def append(path, name, notes, stopped):
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    number = None
    while not stopped():
        # A lock of the cluster: the size that follows is what the other node has left.
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        if number is None:
            number = records_of(name, os.pread(file, size, 0), path)
        number += 1
        if os.pwrite(file, record(name, number), size) != WIDTH:
            raise OSError("a short write")
        os.fsync(file)
        fcntl.flock(file, fcntl.LOCK_UN)
        notes.note(number)


def rename(folder, name, notes, stopped):
    libc = ctypes.CDLL(None, use_errno=True)
    root = os.open(folder, os.O_RDONLY)
    number = 0
    for at in range(SLOTS):
        path = slot(folder, name, at)
        if os.path.exists(path):
            number = max(number, int(read(path)[6:15]))
    while not stopped():
        number += 1
        path = os.path.join(folder, name, "new")
        with open(path, "wb") as file:
            file.write(body(name, number))
            file.flush()
            os.fsync(file.fileno())
        os.rename(path, slot(folder, name, number))
        if libc.syncfs(root):
            raise OSError(ctypes.get_errno(), "syncfs")
        notes.note(number)


def make(folder, name, outside):
    for path in [os.path.join(folder, name), os.path.join(folder, "common")]:
        os.makedirs(path, exist_ok=True)
    stop = os.path.join(outside, "stop")

    def stopped():
        return os.path.exists(stop)

    def work(task, what, *arguments):
        # A promise that cannot be made any more ends the load, and with it the test.
        try:
            task(*arguments, name, Notes(os.path.join(outside, what)), stopped)
        except BaseException as error:
            print(f"{what}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)

    for arguments in [
        (append, "own", os.path.join(folder, name, "records")),
        (append, "shared", os.path.join(folder, "common", "records")),
        (rename, "renamed", folder),
    ]:
        threading.Thread(target=work, args=arguments).start()


def check(folder, name, own, shared, renamed):
    for what, promised, path in [
        ("own", own, os.path.join(folder, name, "records")),
        ("shared", shared, os.path.join(folder, "common", "records")),
    ]:
        found = records_of(name, read(path), path)
        if found < promised:
            sys.exit(f"of {promised} {what} records of {name} {found} are there")
    for number in range(max(1, renamed - SLOTS + 1), renamed + 1):
        path = slot(folder, name, number)
        data = read(path)
        found = int(data[6:15] or 0)
        # A later one may have come that nobody promised.
        if found < number or found % SLOTS != number % SLOTS or data != body(name, found):
            sys.exit(f"{path} is wrong: {found} with {len(data)} bytes in the place of {number}")


if sys.argv[1] == "make":
    make(*sys.argv[2:])
else:
    check(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
