"""Coverage-guided fuzzing of whatever parses bytes, by atheris. Optional: hypothesis does it too.

    python tests/fuzz.py             every target, FUZZ_SECONDS each (60)
    python tests/fuzz.py TARGET ...  these only

Any exception but a typed error of ours ends a target and leaves what did it in `.fuzz/TARGET`. A
checksum that is not right ends most parsers at once, so what lies behind one (edits of the
MANIFEST, messages, properties and indexes of tables) is a target of its own.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
CORPUS = ROOT / ".fuzz"
SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))
LONGEST = 65_536  # bytes of an input


def targets() -> dict[str, tuple[Callable[[bytes], object], list[bytes]]]:
    """Each with the inputs it begins with; imported late, so that atheris sees the imports."""
    import meles
    from backups import backup, payloads
    from meles.engine.backup.format import Place, Start, decode_entries, decode_large
    from meles.engine.backup.restoring import check_streams
    from meles.engine.errors import Error
    from meles.engine.fs.files import Directory
    from meles.engine.log.reader import LogReader
    from meles.engine.manifest.edit import Edit
    from meles.engine.manifest.manifest_file import replay_manifest
    from meles.engine.options import load_options
    from meles.engine.table.index import decode_index, decode_properties
    from meles.engine.table.reader import Table
    from meles.engine.vlog.reader import ValueLogFile, load_meta
    from meles.engine.vlog.recover import recover_tail
    from meles.workers.wire.framing import FrameDecoder, decode_payload
    from meles.workers.wire.messages import Heartbeat, encode, parse
    from whole import build

    home = Path(tempfile.mkdtemp(prefix="meles-fuzz-", dir="/dev/shm"))
    whole = build(home, closed=False)

    def samples(kind: str) -> list[bytes]:
        return [(whole.path / name).read_bytes() for name in whole.names(kind)]

    def in_a_file(name: str, read: Callable[[Directory], object]) -> Callable[[bytes], object]:
        folder = home / name.replace(".", "-")
        folder.mkdir()

        def run(data: bytes) -> None:
            (folder / name).write_bytes(data)
            with Directory(str(folder)) as directory:
                read(directory)

        return run

    def log(data: bytes) -> None:
        reader = LogReader(data, "log")
        for frame in reader.frames():
            deque(reader.records(frame), maxlen=0)
        if reader.tail is not None:
            reader.whole_frame_after(reader.tail.end)

    def table(directory: Directory) -> None:
        with Table(directory, 1) as opened:
            deque(opened.scan(), maxlen=0)
            deque(opened.scan_reverse(), maxlen=0)
            opened.get(b"k1", 1 << 60)
            opened.verify()

    def values(directory: Directory) -> None:
        with contextlib.closing(ValueLogFile(directory, load_meta(directory, 1))) as file:
            file.verify()

    def frames(data: bytes) -> None:
        for plain in FrameDecoder().feed(data):
            parse(plain, to_child=False)

    def edit(data: bytes) -> None:
        with contextlib.suppress(ValueError):  # which its caller makes a CorruptionError of
            Edit.from_plain(decode_payload(data))

    def configuration(directory: Directory) -> None:
        load_options({}, config=f"{directory.path}/meles.toml")

    def entries(data: bytes) -> None:
        place = Place("stream", 0)
        with contextlib.suppress(Error):
            decode_large(data, Start(2, 1 << 40), place)
        decode_entries(data, Start(2, 1 << 40), place)

    with meles.open(whole.path, mode="read_only") as db:
        streams = [backup(db), backup(db, since=db.max_version() // 2)]

    return {
        "backup": (lambda data: check_streams(io.BytesIO(data)), streams),
        "entries": (entries, [each for stream in streams for each in payloads(stream)[1:-1]]),
        "manifest": (lambda data: replay_manifest(data, "MANIFEST"), samples("MANIFEST")),
        "edit": (edit, []),
        "message": (lambda data: parse(decode_payload(data), to_child=True), []),
        "properties": (
            lambda data: decode_properties(data, size=1 << 20, crc=1, offset=0, path="t"),
            [],
        ),
        "index": (lambda data: decode_index(data, 3, 4096, 0, "t"), []),
        "log": (log, samples("log")),
        "table": (in_a_file("000001.sst", table), samples("table")),
        "values": (in_a_file("000001.vlog", values), samples("value log")),
        "tail": (in_a_file("000002.vlog", lambda d: recover_tail(d, 2)), samples("open value log")),
        "frames": (frames, [encode(Heartbeat(1, 2, 3, 4))]),
        "configuration": (in_a_file("meles.toml", configuration), [b"sync = 'none'\n"]),
    }


def fuzz(name: str) -> None:
    """One target, in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["meles"]):
        run, seeds = targets()[name]
        from meles.engine.errors import Error

    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(seed[:LONGEST])

    def one(data: bytes) -> None:
        with contextlib.suppress(Error):
            run(data)

    limits = [f"-max_total_time={SECONDS}", f"-max_len={LONGEST}", "-timeout=10"]
    flags = [*limits, "-rss_limit_mb=1024", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={corpus}/", str(corpus)], one)
    atheris.Fuzz()


NAMES = (
    "manifest", "edit", "message", "properties", "index", "log", "table", "values", "tail",
    "frames", "configuration",
)  # fmt: skip


def main(words: list[str]) -> int:
    if words[:1] == ["--target"]:
        fuzz(words[1])
    failed = []
    for name in words or NAMES:
        print(f"-- {name}, {SECONDS} s", flush=True)
        command = [sys.executable, __file__, "--target", name]
        if subprocess.run(command, check=False, cwd=ROOT).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "no target failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
