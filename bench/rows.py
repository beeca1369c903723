"""What is measured: one Step per row, in the order in which they run on a fresh mount.

A step that fails ends its group, whose later steps need what it left behind; the other groups go on.  A step without a
label prepares for the next ones and is not reported.
"""

from dataclasses import dataclass

from .archive import Archive

CLIENTS = ("one", "two")  # the folders of two clients


@dataclass(frozen=True)
class Scale:
    """How much is done. memory is the largest number of inodes to remember, which the descriptor limit may lower."""

    runs: int
    files: int
    mib: int
    random: int
    tree: int
    pair: int
    memory: int


FULL = Scale(runs=5, files=1000, mib=64, random=5000, tree=2000, pair=500, memory=100_000)
QUICK = Scale(runs=5, files=400, mib=16, random=1000, tree=300, pair=200, memory=4000)
PAIR_MIB = 8


@dataclass(frozen=True)
class Step:
    """One workload of the client: count operations in each folder, by one client per folder at once."""

    label: str
    workload: str
    count: int
    flags: tuple[str, ...] = ()
    folders: tuple[str, ...] = ("files",)
    group: str = "files"
    program: tuple[str, ...] = ()
    lines: int = 0  # how many lines the program prints
    pinned: bool = False  # the first client to the first CPU, the second to the second


COLD, WARM, DIRECT = ("-c",), ("-w",), ("-d",)
STATUS = ("git", "--no-optional-locks", "status", "--porcelain")


def steps(scale: Scale, archive: Archive, clients: int, direct: bool) -> list[Step]:
    """All of them; those of two clients only where there are two CPUs.

    O_DIRECT only where the source is memory: on a disk, some contenders would be measured on the disk and others, which
    do not pass the flag on, on the source's page cache.
    """
    pairs = _pairs(scale, direct) if clients > 1 else []
    return [*_files(scale), *(_direct(scale) if direct else []), *_programs(archive), *pairs]


def _files(scale: Scale) -> list[Step]:
    many, big, some = scale.files, scale.mib, scale.random
    return [
        Step("create+close", "create", many, COLD),
        Step("open+write 4k+close", "write4k", many, COLD),
        Step("stat", "stat", many, COLD),
        Step("stat, warm", "stat", many, WARM),
        Step("open+read 4k+close", "read4k", many, COLD),
        Step("open+read 4k+close, warm", "read4k", many, WARM),
        Step("readdir+stat entries", "readdirstat", many, COLD),
        Step("unlink", "unlink", many, COLD),
        Step("sequential write 1M", "seqwrite", big, WARM),
        Step("sequential read 1M", "seqread", big, COLD),
        Step("random read 4k", "randread", some, COLD),
        Step("random write 4k", "randwrite", some),
    ]


def _direct(scale: Scale) -> list[Step]:
    """It may be refused, hence groups of their own."""
    return [
        Step("random read 4k O_DIRECT", "randread", scale.random, DIRECT, group="direct read"),
        Step("random write 4k O_DIRECT", "randwrite", scale.random, DIRECT, group="direct write"),
    ]


def _programs(archive: Archive) -> list[Step]:
    def step(label: str, flags: tuple[str, ...], program: tuple[str, ...], lines: int = 0) -> Step:
        return Step(
            label, "exec", archive.files, flags, folders=("tree",), group="programs", program=program, lines=lines
        )

    find = ("find", "src", "-type", "f", "-size", "+1")
    return [
        step("untar, files", (), ("tar", "-xf", str(archive.path))),
        step("find -size, files", COLD, find, archive.large),
        step("git status, files", COLD, STATUS),
        step("git status, warm, files", (), STATUS),
    ]


def _pairs(scale: Scale, direct: bool) -> list[Step]:
    """Each row by one client, then by two at once, each in a folder of its own."""
    found = []
    random_read = ("random read 4k O_DIRECT", DIRECT) if direct else ("random read 4k", COLD)
    for label, workload, count, flags in (
        ("create+close", "create", scale.pair, COLD),
        ("open+write 4k+close", "write4k", scale.pair, COLD),
        ("stat", "stat", scale.pair, COLD),
        ("open+read 4k+close", "read4k", scale.pair, COLD),
        ("", "seqwrite", PAIR_MIB, ()),
        (random_read[0], "randread", scale.random, random_read[1]),
    ):
        for folders, number in ((("alone",), "one client"), (CLIENTS, "two clients")):
            name = f"{label}, {number}" if label else ""
            found.append(Step(name, workload, count, flags, folders, number, pinned=True))
    return found


FOLDERS = ("files", "tree", "alone", *CLIENTS)


def two_client_rows(labels: list[str]) -> list[tuple[str, str, str]]:
    """(row, its label for one client, its label for two), for the ratios."""
    ends = ", one client", ", two clients"
    rows = [label.removesuffix(ends[0]) for label in labels if label.endswith(ends[0])]
    return [(row, row + ends[0], row + ends[1]) for row in rows]
