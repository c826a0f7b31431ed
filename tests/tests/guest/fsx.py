"""Random operations on a file, each read back and compared with a copy in memory, as the fsx of file system test suites.

fsx.py FOLDER SEED SECONDS
"""

import ctypes
import errno
import mmap
import os
import random
import sys
import time

LARGEST = 3 << 20
# Ranges that are taken out or put in are whole blocks of any file system.
BLOCK = 4096
# Of fallocate(2).
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Exerciser:
    def __init__(self, folder, seed):
        self.path = os.path.join(folder, f"fsx.{seed}")
        self.random = random.Random(seed)
        self.model = bytearray()
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self.done = []
        self.unsupported = set()

    def note(self, *words):
        self.done.append(" ".join(str(word) for word in words))

    def fail(self, text):
        last = "\n".join(self.done[-20:])
        sys.exit(f"fsx: {text}, after {len(self.done)} operations:\n{last}")

    def offset(self):
        return self.random.randrange(len(self.model) + 1)

    def data(self):
        length = 1 + int(self.random.random() ** 3 * (256 << 10))
        return self.random.randbytes(length)

    def extend(self, length):
        if length > len(self.model):
            self.model.extend(bytes(length - len(self.model)))

    def write(self):
        # Sometimes beyond the end, which leaves a hole.
        offset, data = self.offset() + self.random.choice([0, 0, 0, 50000]), self.data()
        data = data[: max(0, LARGEST - offset)]
        if not data:
            return
        self.note("write", offset, len(data))
        if os.pwrite(self.file, data, offset) != len(data):
            self.fail("a short write")
        self.extend(offset)
        self.model[offset : offset + len(data)] = data

    def write_mapped(self):
        if not self.model:
            return
        offset = self.random.randrange(len(self.model))
        data = self.data()[: len(self.model) - offset]
        self.note("mapped write", offset, len(data))
        with mmap.mmap(self.file, len(self.model)) as memory:
            memory[offset : offset + len(data)] = data
            if self.random.random() < 0.3:
                memory.flush()
        self.model[offset : offset + len(data)] = data

    def truncate(self):
        length = self.random.randrange(LARGEST) if self.random.random() < 0.2 else self.offset()
        self.note("truncate", length)
        os.ftruncate(self.file, length)
        del self.model[length:]
        self.extend(length)

    def allocate(self, mode, offset, length):
        self.note("fallocate", mode, offset, length)
        if libc.fallocate(self.file, mode, offset, length) == 0:
            return True
        error = ctypes.get_errno()
        if error != errno.EOPNOTSUPP:
            self.fail(f"fallocate: {os.strerror(error)}")
        self.unsupported.add(mode)
        return False

    def range(self):
        offset = self.offset()
        return offset, self.random.randrange(1, 200000)

    def punch(self):
        offset, length = self.range()
        if self.allocate(PUNCH_HOLE | KEEP_SIZE, offset, length):
            self.zero(offset, length)

    def zero_range(self):
        offset, length = self.range()
        length = min(length, LARGEST - offset)
        if length > 0 and self.allocate(ZERO_RANGE, offset, length):
            self.extend(offset + length)
            self.zero(offset, length)

    def zero(self, offset, length):
        length = max(0, min(length, len(self.model) - offset))
        self.model[offset : offset + length] = bytes(length)

    def blocks(self):
        """A range of whole blocks that ends before the end of the file."""
        count = (len(self.model) - 1) // BLOCK
        if count < 2:
            return None
        first = self.random.randrange(count - 1)
        return first * BLOCK, self.random.randrange(1, min(count - first, 40)) * BLOCK if count - first > 1 else BLOCK

    def collapse(self):
        blocks = self.blocks()
        if blocks and self.allocate(COLLAPSE_RANGE, *blocks):
            del self.model[blocks[0] : blocks[0] + blocks[1]]

    def insert(self):
        blocks = self.blocks()
        if blocks and len(self.model) + blocks[1] <= LARGEST and self.allocate(INSERT_RANGE, *blocks):
            self.model[blocks[0] : blocks[0]] = bytes(blocks[1])

    def force(self):
        self.note("fsync")
        os.fsync(self.file)

    def open_again(self):
        """What is read afterwards comes from the disk."""
        self.note("open again")
        os.fsync(self.file)
        os.posix_fadvise(self.file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(self.file)
        self.file = os.open(self.path, os.O_RDWR)

    def compare(self, offset, found):
        expected = self.model[offset : offset + len(found)]
        if found != expected:
            wrong = next(i for i, (a, b) in enumerate(zip(found, expected)) if a != b)
            self.fail(f"byte {offset + wrong} is {found[wrong]} and not {expected[wrong]}")

    def read(self):
        offset, length = self.range()
        self.note("read", offset, length)
        found = os.pread(self.file, length, offset)
        if len(found) != max(0, min(length, len(self.model) - offset)):
            self.fail(f"{len(found)} bytes read")
        self.compare(offset, found)

    def read_mapped(self):
        if self.model:
            offset, length = self.range()
            self.note("mapped read", offset, length)
            with mmap.mmap(self.file, len(self.model), prot=mmap.PROT_READ) as memory:
                self.compare(offset, memory[offset : offset + length])

    def read_all(self):
        self.open_again()
        found = os.pread(self.file, LARGEST + 1, 0)
        if len(found) != len(self.model):
            self.fail(f"it has {len(found)} bytes and not {len(self.model)}")
        self.compare(0, found)

    def run(self, seconds):
        tasks = [self.write] * 6 + [self.write_mapped, self.read, self.read_mapped] * 2
        tasks += [self.truncate, self.punch, self.zero_range, self.collapse, self.insert, self.force, self.open_again]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.random.choice(tasks)()
            if len(self.done) % 50 == 0:
                self.read_all()
        self.read_all()
        refused = f", fallocate without the modes {sorted(self.unsupported)}" if self.unsupported else ""
        print(f"fsx: {len(self.done)} operations{refused}")


Exerciser(sys.argv[1], int(sys.argv[2])).run(float(sys.argv[3]))
