"""Bugs planted on purpose, each with the test that catches it: proof that the suites can fail.

    python tests/planted.py            plant all, one at a time; exit code 1 if one is not caught
    python tests/planted.py NAME ...   these only
    python tests/planted.py --table    what PLANTED.md holds

Works on a copy of the tree, never on the tree itself. A bug whose text is no longer in its file
does not apply: it counts as not caught, so that this list follows the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = shutil.ignore_patterns(
    ".git", ".venv*", ".mypy*", ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__",
    "*.egg-info", "run-data", "results", "build", "dist",
)  # fmt: skip


class Bug(NamedTuple):
    """`rule` is what it breaks (see `engine/stress/judge.py`; C: nothing left behind, L: no block,
    S: security). `changes` are (file, old, new); `test` what must fail then."""

    name: str
    rule: str
    changes: tuple[tuple[str, str, str], ...]
    test: str


IMAGES = "tests/faults/test_crash_images.py"
CUT = f"{IMAGES}::test_whenever_it_ends_what_was_acknowledged_is_there[0.0]"
KILL = f"{IMAGES}::test_whenever_it_ends_what_was_acknowledged_is_there[None]"
TORN = f"{IMAGES}::test_whenever_it_ends_what_was_acknowledged_is_there[0.3]"
LIES = "tests/faults/test_lying_worker.py"
DAMAGE = "tests/faults/test_damage.py"
CALLS = "tests/faults/test_every_call.py"
CRYPT = "tests/engine/crypt"
SECRETS = "tests/security/test_encryption.py"
KEYS = "tests/api/test_encryption.py"
BACKUP = "tests/api/test_backup.py"
STREAM = "tests/security/test_backup_stream.py"
RESTORE = "tests/faults/test_restore.py"
COPIES = f"{SECRETS}::test_copies_of_a_live_directory_opened_elsewhere"
SEALED = "tests/engine/kernel/test_sealed_blocks.py"
BAD_DISK = "tests/process/test_bad_disk.py"
LIFETIME = "tests/contract/test_lifetime.py"
HELD = f"{BAD_DISK}::test_a_worker_that_the_disk_holds_is_replaced_when_it_is_let_go"

BUGS = (
    Bug("acknowledged before it is synced", "D2",
        (("engine/writing/writer.py", "                for file in files:\n                    file.sync()",
          "                for file in files[:0]:\n                    file.sync()"),), CUT),
    Bug("no directory sync after a log is created", "D2",
        (("engine/store.py", "        try:\n            self.dirs.tables.sync()\n",
          "        try:\n            pass\n"),),
        f"{IMAGES}::test_without_a_value_log_too[0.0]"),
    Bug("no sync of a MANIFEST record", "D2",
        (("engine/manifest/manifest_file.py",
          "            self._file.pwrite(record, self._end)\n            self._file.sync()",
          "            self._file.pwrite(record, self._end)"),), CUT),
    Bug("no directory sync after the MANIFEST is renamed", "D2",
        (("engine/fs/files.py", "            self.rename(through, name)\n            self.sync()",
          "            self.rename(through, name)"),),
        "tests/engine/manifest/test_manifest_faults.py"),
    Bug("no directory sync after a flush", "D2",
        (("engine/memtable/flush.py", "    built = builder.finish()\n    directory.sync()",
          "    built = builder.finish()"),),
        f"{IMAGES}::test_without_a_value_log_too[0.0]"),
    Bug("values not synced before their log goes", "D2",
        (("engine/background/flushing.py", "durable = self._writer.sync_values()",
          "durable = None"),
         ("engine/writing/writer.py",
          "                files: list[ValueLogWriter | LogWriter] = [*self.sink.open_files(), *sealed]",
          "                files: list[ValueLogWriter | LogWriter] = [*sealed]")), CUT),
    Bug("a log is removed before the MANIFEST names its table", "D1",
        (("engine/store.py", "        self.commit_edit(\n            Edit(\n                add=tuple((0,",
          "        self.unlink(Kind.WAL, memtable.id)\n        self.commit_edit(\n            Edit(\n"
          "                add=tuple((0,"),), KILL),
    Bug("inputs are removed before the MANIFEST changes", "D1",
        (("engine/store.py", "            self._manifest.append(edit, after)\n",
          "            for gone in set(self.version.tables) - set(after.tables):\n"
          "                self.unlink(Kind.TABLE, gone)\n"
          "            self._manifest.append(edit, after)\n"),), KILL),
    Bug("frames are not checked in replay", "A",
        (("engine/log/reader.py",
          "        if crc32c(data[start : start + length], self.seed ^ length) != crc:\n"
          "            return None\n", ""),), f"{DAMAGE}::test_a_flipped_bit"),
    Bug("logs behind damage are replayed", "P",
        (("engine/recovery.py",
          "        stopped = not result.tail.sealed and mem_id != needed[-1]  "
          "# the last one is not blank\n", "        stopped = False\n"),),
        "tests/engine/test_recovery.py::test_logs_behind_damage_are_set_aside"),
    Bug("a MANIFEST checksum that does not cover the length", "W",
        (("engine/manifest/manifest_file.py", "seed ^ len(payload))", "seed)"),
         ("engine/manifest/manifest_file.py",
          "_NUMBER.pack(found) + payload, file.seed ^ length\n", "_NUMBER.pack(found) + payload, file.seed\n"),
         ("engine/manifest/manifest_file.py",
          "if crc == crc32c(_NUMBER.pack(found) + payload, file.seed ^ length):",
          "if crc == crc32c(_NUMBER.pack(found) + payload, file.seed):"),
         ("engine/manifest/manifest_file.py",
          "        return not _decodes(rest[PREFIX_BYTES:], number, file.cipher)",
          "        return True")), "tests/engine/manifest"),
    Bug("an older MANIFEST is believed", "R",
        (("engine/recovery.py", "        if table.meta.max_version > last_timestamp(state):",
          "        if False:"),),
        "tests/engine/test_recovery.py::test_an_older_manifest_of_the_same_ids_is_refused"),
    Bug("blocks are not checked", "W",
        (("engine/table/reader.py",
          "if stored_len != len(data) - BLOCK_HEAD_BYTES or crc != crc32c(",
          "if stored_len != len(data) - BLOCK_HEAD_BYTES or 0 * crc32c("),),
        f"{DAMAGE}::test_a_flipped_bit[table]"),
    Bug("values are not checked", "W",
        (("engine/vlog/reader.py",
          "if crc32c(view[offset + CHECKED_FROM : after], crc32c(pointer)) != crc:",
          "if False:"),), f"{DAMAGE}::test_a_flipped_bit[value log]"),
    Bug("a tombstone is dropped too early", "R",
        (("engine/compaction/retention.py", "        return at < 0 or self.below[at][1] < key",
          "        return True"),), "tests/engine/compaction/test_retention.py"),
    Bug("timestamps begin again after recovery", "M",
        (("engine/recovery.py", "    return max([state.version.max_ts, *tables, *logs])",
          "    return max([state.version.max_ts, *tables])"),),
        "tests/engine/test_recovery.py::test_timestamps_go_on_above_everything_recovered"),
    Bug("a failed sync is tried again", "D2",
        (("engine/writing/writer.py",
          "                for file in files:\n                    file.sync()\n            except OSError as error:\n"
          "                with self.lock:\n                    raise self._failed_locked(error, final=True) from error\n"
          "            self._counters.syncs += 1",
          "                for file in files:\n                    file.sync()\n            except OSError:\n"
          "                for file in files:\n                    file.sync()\n"
          "            self._counters.syncs += 1"),),
        "tests/engine/test_durability.py::test_after_a_failed_sync_nothing_is_written_and_everything_is_read"),
    Bug("reads are not checked for conflicts", "SSI",
        (("engine/txn/txn.py", "check=", "check=None and "),), "tests/isolation/test_anomalies.py"),
    Bug("an answer of an older generation is accepted", "R",
        (("workers/parent/handle.py",
          "        if task is None or answer.generation != task.generation:\n            return False",
          "        if task is None:\n            return False"),),
        "tests/workers/test_process_pool.py::test_an_answer_of_an_older_generation_is_dropped"),
    Bug("a worker with a verdict is not replaced", "L",
        (("workers/parent/crew.py",
          "        else:\n            self._restart_later(worker, self._clock())",
          "        elif not worker.verdict:\n            self._restart_later(worker, self._clock())"),),
        f"{HELD}[compactor]"),
    Bug("a flush runs again under the name of the first", "W",
        (("engine/background/flushing.py",
          "        return dataclasses.replace(job, table_id=self._store.reserve_tables(1))",
          "        return job"),), f"{HELD}[flusher]"),
    Bug("a log that cannot be read is blank", "D1",
        (("engine/recovery.py",
          "    with directory.open(name) as file:\n        head = file.pread(_HEAD_BYTES, 0)\n",
          "    try:\n        head = directory.open(name).pread(_HEAD_BYTES, 0)\n"
          "    except OSError:\n        return True\n"),),
        f"{BAD_DISK}::test_a_log_that_cannot_be_read_is_not_taken_for_an_empty_one"),
    Bug("an output is not checked", "W",
        (("engine/outputs.py",
          "        if table.meta.size != file.size or table.file_crc() != file.crc:",
          "        if False:"),), f"{LIES}::test_a_file[flipped-flush]"),
    Bug("a flush may lack keys", "D1",
        (("engine/outputs.py", "if not len(memtable.index) <= count <=", "if not 0 < count <="),),
        f"{LIES}::test_a_flush_without_a_key"),
    Bug("entries of a compaction are not counted", "D1",
        (("engine/outputs.py", "    if there + dropped != expected:", "    if False:"),),
        f"{LIES}::test_a_file[of_nothing-compaction]"),
    Bug("damage in an output parks the job", "L",
        (("engine/outputs.py",
          "    except (CorruptionError, FormatVersionError, EncryptionKeyError) as error:\n",
          "    except ZeroDivisionError as error:\n"),), f"{LIES}::test_a_file[cut-flush]"),
    Bug("a lack of descriptors ends writing", "L",
        (("engine/fs/files.py",
          "return isinstance(error, OSError) and error.errno in _NO_DESCRIPTOR", "return False"),),
        f"{CALLS}::test_what_was_cured_is_taken[no descriptors]"),
    Bug("a disk that cannot read gives a bare error", "W",
        (("engine/vlog/writer.py", "        except OSError as error:\n            raise entry_error(",
          "        except ZeroDivisionError as error:\n            raise entry_error("),),
        f"{CALLS}::test_some_calls[EIO in reading]"),
    Bug("a full disk ends writing", "L",
        (("engine/writing/writer.py", "        if isinstance(error, DiskFullError) and not final:",
          "        if False:"),), f"{CALLS}::test_what_was_cured_is_taken[full]"),
    Bug("workers share the lock", "C",
        (("workers/parent/spawn.py",
          'return high_fd(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd))',
          "return high_fd(os.dup(fd))"),), "tests/workers/parent/test_spawn.py"),
    Bug("the lock is not taken", "C",
        (("engine/fs/dir_lock.py", "                fcntl.flock(directory.fd, mode)\n                break",
          "                break"),),
        "tests/process/test_surroundings.py::test_of_many_that_open_at_once_one_wins"),
    Bug("files are named by path", "S3",
        (("engine/fs/files.py", "fd = _high_fd(os.open(name, flags, FILE_MODE, dir_fd=self.fd))",
          "fd = _high_fd(os.open(f\"{self.path}/{name}\", flags, FILE_MODE))"),),
        "tests/process/test_surroundings.py::test_a_directory_that_is_renamed_while_open"),
    Bug("a repair deletes what it replaces", "doctor",
        (("engine/doctor/repair.py", "        directory.rename(name, aside)\n        directory.sync()\n"
          "        return aside", "        directory.unlink(name)\n        return aside"),),
        "tests/engine/doctor/test_doctor.py"),
    Bug("salvage keeps older versions of lost keys", "R",
        (("engine/doctor/salvage.py",
          "        kept = [at for at, key in enumerate(columns.keys) if key != lost_key]",
          "        kept = list(range(len(columns.keys)))"),), "tests/engine/doctor/test_salvage.py"),
    Bug("modes follow the umask", "S1",
        (("engine/fs/files.py", "            os.fchmod(fd, FILE_MODE)", "            pass"),
         ("engine/fs/files.py", "FILE_MODE: Final = 0o600", "FILE_MODE: Final = 0o666")),
        "tests/security/test_files.py::test_modes_do_not_depend_on_the_umask"),
    Bug("anybody's directory is opened", "S1",
        (("engine/opening.py", "        check_ownership(directory)", "        pass"),),
        "tests/security/test_files.py::test_a_directory_others_may_write_to_is_refused"),
    Bug("links are followed", "S2",
        (("engine/fs/files.py",
          "_NOTHING_ODD: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK",
          "_NOTHING_ODD: Final = os.O_CLOEXEC | os.O_NONBLOCK"),),
        "tests/security/test_files.py::test_nothing_is_read_through_a_planted_link"),
    Bug("errors quote keys", "S13",
        (("engine/table/reader.py",
          "        return CorruptionError(what, path=self.path, offset=offset, kind=kind)",
          "        return CorruptionError(f\"{what} near {self.meta.min_key!r}\", path=self.path, "
          "offset=offset, kind=kind)"),),
        "tests/security/test_processes.py::test_logs_and_errors_hold_no_key_and_no_value"),
    Bug("frames are not bounded", "S5",
        (("workers/wire/framing.py", "                if not 0 < length <= MAX_PAYLOAD:",
          "                if not 0 < length:"),), "tests/workers/wire/test_framing.py"),
    Bug("a nonce without the place", "S10",
        (("engine/crypt/file_cipher.py", "_NONCE.pack(place, serial)", "_NONCE.pack(0, serial)"),),
        COPIES),
    Bug("files have no salt of their own", "S10",
        (("engine/crypt/keys.py", "FileHeader(magic, file_id, external, key_id, os.urandom(SALT_BYTES))",
          "FileHeader(magic, file_id, external, key_id, bytes(SALT_BYTES))"),), COPIES),
    Bug("a failed append's serial number is used again", "S10",
        (("engine/vlog/sealed.py", "        self._serial += 1\n", "        self._serial = 1\n"),),
        f"{SECRETS}::test_writes_that_fail_and_are_tried_again"),
    Bug("random nonces are not", "S10",
        (("engine/crypt/file_cipher.py", "nonce = os.urandom(NONCE_BYTES)",
          "nonce = bytes(NONCE_BYTES)"),),
        f"{CRYPT}/test_file_cipher.py::test_a_random_nonce_is_another_each_time"),
    Bug("the tag of a block is not checked", "S9",
        (("engine/table/reader.py",
          "        except SealBroken as error:\n            raise self._damaged(",
          "        except SealBroken as error:\n            if what is What.BLOCK:\n"
          "                stream = self._cipher.seal(bytes(len(data) - 16), what, offset, about)\n"
          "                return bytes(a ^ b for a, b in zip(data[:-16], stream))\n"
          "            raise self._damaged("),), f"{SEALED}::test_damage_is_found"),
    Bug("the authenticator of a log's end is not checked", "S9",
        (("engine/log/sealed.py", "if hmac.compare_digest(mark, stored[BODY_BYTES:]):",
          "if mark:"),),
        "tests/engine/log/test_sealed.py::test_the_end_record_is_readable_and_cannot_be_another"),
    Bug("associated data without the place", "S9",
        (("engine/crypt/file_cipher.py", "self._bound[what] + _PLACE.pack(place)",
          "self._bound[what]"),), f"{CRYPT}/test_format.py::test_a_seal_is_what_the_page_says"),
    Bug("a block is not bound to its codec and length", "S9",
        (("engine/table/block_maker.py", "about = SEALED_ABOUT.pack(len(raw), codec)",
          'about = b""'),
         ("engine/table/reader.py", "about = SEALED_ABOUT.pack(raw_len, codec)", 'about = b""')),
        f"{SEALED}::test_a_block_is_bound_to_its_codec_and_length"),
    Bug("a value is not bound to its address and version", "S9",
        (("engine/vlog/sealed_entry.py", "What.VALUE, place, seeded, serial)",
          'What.VALUE, place, b"", serial)'),),
        "tests/engine/vlog/test_sealed_entry.py::test_it_opens_as_nothing_else"),
    Bug("sealed tables are looked up in place", "S9",
        (("engine/table/reader.py", "sealed=self._cipher is not None, pages", "sealed=False, pages"),),
        f"{SECRETS}::test_a_plain_block_in_a_sealed_table_is_not_read"),
    Bug("sealed tables are merged in place", "S9",
        (("engine/table/in_place.py", "sealed=table._cipher is not None", "sealed=False"),),
        f"{SEALED}::test_a_merge_takes_nothing_that_is_not_sealed"),
    Bug("files without a seal pass", "S9",
        (("engine/crypt/keys.py", "if ring is not None and ring.active and not ring.mixed:",
          "if False:"),), f"{SECRETS}::test_a_header_that_says_it_is_not_encrypted"),
    Bug("the registry is not sealed", "S9",
        (("engine/crypt/registry.py",
          "sealed = cipher.seal_again(ring.pack(), What.REGISTRY, mode)", "sealed = ring.pack()"),
         ("engine/crypt/registry.py",
          "KeyRing.unpack(cipher.open_again(sealed, What.REGISTRY, header.external))",
          "KeyRing.unpack(sealed)")), f"{SECRETS}::test_canaries_are_in_no_file"),
    Bug("the registry's authenticator is not checked", "S9",
        (("engine/crypt/registry.py",
          "return KeyRing.unpack(cipher.open_again(sealed, What.REGISTRY, header.external))",
          'stream = cipher._aead.encrypt(sealed[:12], bytes(len(sealed) - 28), b"")\n'
          "        return KeyRing.unpack(bytes(a ^ b for a, b in zip(sealed[12:-16], stream)))"),),
        f"{CRYPT}/test_format.py"
        "::test_no_byte_of_what_is_sealed_can_be_another_under_a_checksum_that_fits"),
    Bug("another key is accepted", "S11",
        (("engine/crypt/registry.py",
          '        raise EncryptionKeyError(\n            f"{path}: this is not the key the directory '
          'was made with"\n        ) from None', "        return KeyRing((), 0)"),),
        f"{KEYS}::test_rotate_wants_the_old_key_and_a_closed_database"),
    Bug("a registry is made beside files that have none", "S11",
        (("engine/keys_of_directory.py", "        if not is_empty(tables):", "        if False:"),),
        f"{KEYS}::test_a_missing_registry_is_named_and_nothing_is_made_in_its_place"),
    Bug("rotating asks the MANIFEST alone whether there was a registry", "S11",
        (("engine/keys_of_directory.py", "        if parsed is None and name != MANIFEST:",
          "        if name != MANIFEST:"),),
        "tests/api/test_refusals.py::test_a_registry_that_is_missing_beside_sealed_tables"),
    Bug("core dumps hold the keys of the host", "S11",
        (("engine/keys_of_directory.py", "    leave_memory_out_of_core_dumps()\n", ""),),
        "tests/security/test_core_dumps.py"),
    Bug("rotating drops the old data keys", "S12",
        (("engine/crypt/registry.py",
          "(*ring.keys.values(), DataKey.fresh(key_id, unix_seconds()))",
          "(DataKey.fresh(key_id, unix_seconds()),)"),), f"{KEYS}::test_rotate_gives_another_key"),
    Bug("a data key is used though it could not be written", "S12",
        (("engine/crypt/registry.py",
          '            log.warning("the data key is due, and KEYREGISTRY cannot be written: %s", error)\n'
          "            return\n",
          '            log.warning("the data key is due, and KEYREGISTRY cannot be written: %s", error)'
          "\n"),),
        f"{CRYPT}/test_registry.py::test_a_registry_that_cannot_be_written_leaves_the_key_in_use"),
    Bug("a data key is never replaced", "S12",
        (("engine/crypt/registry.py",
          "if active and unix_seconds() - self.keys[active].created >= self._period:", "if False:"),),
        f"{CRYPT}/test_registry.py::test_a_key_is_used_for_its_period"),
    Bug("what an increment does not refer to stays", "R",
        (("engine/backup/joining.py", "                row = next(old, None)\n",
          "                out.append(row[0], -row[1], *row[2:])\n                row = next(old, None)\n"),),
        f"{BACKUP}::test_a_deleted_key_does_not_come_back"),
    Bug("a backup holds what a power cut may take", "D2",
        (("engine/backup/writing.py", "            _sync(engine.writer)\n", "            pass\n"),),
        f"{BACKUP}::test_what_a_backup_holds_is_on_the_medium"),
    Bug("a backup does not wait for a commit that is counted late", "D2",
        (("engine/backup/writing.py", "_sync(engine.writer)", "engine.writer.sync()"),),
        f"{BACKUP}::test_a_commit_that_can_be_read_is_waited_for"),
    Bug("a backup goes on with what is committed meanwhile", "A",
        (("engine/backup/writing.py", "Visibility(ts, now_ms()", "Visibility(MAX_VERSION - 1, now_ms()"),),
        f"{BACKUP}::test_writers_go_on_meanwhile"),
    Bug("a backup leaves its read mark", "C",
        (("engine/backup/writing.py", "        mark.end()", "        pass"),),
        f"{BACKUP}::test_what_a_sink_raises_comes_out"),
    Bug("since is inclusive for some", "R",
        (("engine/backup/writing.py", "        if version <= since and", "        if version < since and"),),
        f"{BACKUP}::test_increments_of_a_restored_database_go_on"),
    Bug("an encrypted database is backed up unasked", "S9",
        (("engine/backup/writing.py", "    if not plain and _is_encrypted(engine):", "    if False:"),),
        f"{BACKUP}::test_an_encrypted_database_has_to_be_asked_for"),
    Bug("increments are taken in any order", "S14",
        (("engine/backup/joining.py", "        if since != before:", "        if False:"),),
        f"{BACKUP}::test_streams_that_do_not_follow_one_another"),
    Bug("frames of a stream are not bounded", "S14",
        (("engine/backup/format.py", "<= length <= MAX_FRAME_BYTES:", "<= length:"),),
        f"{STREAM}::test_a_bomb_takes_no_more_memory_than_some_frames"),
    Bug("frames of a stream are not numbered", "S14",
        (("engine/backup/format.py", "    if found != number:", "    if False:"),),
        f"{STREAM}::test_parts_of_a_value_in_another_order"),
    Bug("frames of a stream are not checked", "S14",
        (("engine/backup/format.py", "    if crc != crc32c(payload,", "    if crc == -crc32c(payload,"),),
        f"{STREAM}::test_a_flipped_byte_anywhere"),
    Bug("a frame's checksum begins with nothing of its stream", "S14",
        (("engine/backup/format.py", "_NUMBER.pack(number), seed ^", "_NUMBER.pack(number), 0 ^"),),
        f"{STREAM}::test_a_frame_of_another_stream"),
    Bug("a stream may end anywhere", "S14",
        (("engine/backup/reading.py", "        while self.end is None:\n",
          "        while self._file.peek() if hasattr(self._file, 'peek') else self._file.getbuffer()[self._offset:]:\n"),),
        f"{STREAM}::test_a_stream_cut_anywhere"),
    Bug("the end of a stream is not compared", "S14",
        (("engine/backup/reading.py", "        if end != found:", "        if False:"),),
        f"{STREAM}::test_frames_that_check_out_and_make_no_sense"),
    Bug("a stream may go on behind its end", "S14",
        (("engine/backup/reading.py", "        if self._read(1, short=True):", "        if False:"),),
        f"{STREAM}::test_something_behind_the_end"),
    Bug("entries of a stream may be in any order", "S14",
        (("engine/backup/reading.py", "            if not in_order(columns, self._last):", "            if False:"),),
        f"{STREAM}::test_frames_in_another_order"),
    Bug("the size of a large value is believed", "S14",
        (("engine/backup/reading.py", "        parts, left = [], size\n",
          "        parts, left = [bytes(size)[:0]], size\n"),),
        f"{STREAM}::test_a_bomb_takes_no_more_memory_than_some_frames"),
    Bug("counts in a stream are believed", "S14",
        (("engine/backup/format.py", "    if not count or count * ROW_BYTES > len(body):", "    if bytearray(min(count, 1 << 27)) is None:"),),
        f"{STREAM}::test_a_bomb_takes_no_more_memory_than_some_frames"),
    Bug("a reference fits anything", "S14",
        (("engine/backup/joining.py", " or not _fits((meta, expiry, value), row[2:]):", ":"),),
        f"{STREAM}::test_references_to_nothing"),
    Bug("a stream has entries of any kind", "S14",
        (("engine/backup/format.py", "    if any(meta & 0xFF & ~META_MASK for meta in kinds):", "    if False:"),),
        "tests/engine/backup/test_format.py::test_what_no_entry_may_be"),
    Bug("a restore has its name before it is whole", "S14",
        (("engine/backup/restoring.py", "        for batch in joined(streams):\n            building.add(batch)\n",
          "        staging.put_in_place()\n        for batch in joined(streams):\n            building.add(batch)\n"),
         ("engine/backup/restoring.py", "        building.finish(newest.token, newest.banned)\n        staging.put_in_place()\n",
          "        building.finish(newest.token, newest.banned)\n")),
        f"{RESTORE}::test_a_kill_before_every_call"),
    Bug("a restored directory's name is not synced", "D2",
        (("engine/fs/staging.py", "        self._parent.sync()\n", ""),),
        f"{RESTORE}::test_a_power_cut_as_it_gets_its_name"),
    Bug("a restored table is not synced", "D2",
        (("engine/backup/building.py", "self._builder.finish().meta", "self._builder.complete().meta"),),
        f"{RESTORE}::test_a_power_cut_as_it_gets_its_name"),
    Bug("a restore that fails leaves its files", "C",
        (("engine/fs/staging.py", "            undo.callback(self._empty)\n", ""),),
        f"{RESTORE}::test_whatever_call_fails"),
    Bug("a restored database begins its timestamps anew", "M",
        (("engine/backup/building.py", "            max_ts=newest,\n", ""),),
        f"{BACKUP}::test_timestamps_go_on_where_they_were"),
    Bug("a restored key lies in two tables", "W",
        (("engine/backup/building.py", " and columns.keys[0] != self._last_key\n", "\n"),),
        "tests/engine/backup/test_building.py"),
    Bug("a backup takes its name before it is whole", "C",
        (("engine/cli/backup_files.py", "    temporary = os.path.join(folder, f\".{name[:60]}.writing-{secrets.token_hex(4)}\")",
          "    temporary = path"),
         ("engine/cli/backup_files.py", "os.O_EXCL", "os.O_TRUNC")),
        "tests/engine/cli/test_backup_verbs.py::test_a_backup_that_fails_leaves_no_file"),
    Bug("tables on levels that were added later are damage", "D1",
        (("engine/manifest/edit.py", "if not 0 <= level < MAX_LEVELS:",
          "if not 0 <= level < len(version.levels):"),),
        "tests/api/test_changed_options.py::test_more_and_fewer_levels"),
    Bug("a value that could not be read was taken", "W",
        (("engine/txn/batches.py", "        if self._values is values:", "        if False:"),),
        "tests/contract/test_batch_iterator.py::test_a_value_that_fails_is_not_taken"),
    Bug("an iterator goes on behind damage", "W",
        (("engine/txn/cursor.py", "            self._batches = _Refusing(partial(_again, error))\n",
          ""),),
        "tests/engine/txn/test_cursor.py::test_an_iterator_that_failed_does_not_go_on_behind_it"),
    Bug("who has read commits as if nothing had come since", "SSI",
        (("engine/txn/lifetime.py", "self._read_ts if has_read else -1", "-1"),),
        f"{LIFETIME}::test_a_plain_commit"),
    Bug("a snapshot is held on to after its transaction", "C",
        (("engine/txn/lifetime.py", "        self._mark.end()\n", ""),),
        f"{LIFETIME}::test_nothing_written_nothing_committed"),
    Bug("two threads end a transaction", "A",
        (("engine/txn/lifetime.py", "        if not self._claim_end():\n            self._ends_elsewhere()\n",
          "        self._claim_end()\n"),), f"{LIFETIME}::test_whatever_comes_out_it_has_ended"),
)  # fmt: skip


def caught(bug: Bug, tree: Path, package: Path) -> str:
    """Plant it, run its test, take it out again; an empty text when the test failed."""
    before = {file: (tree / file).read_text() for file, _, _ in bug.changes}
    now = dict(before)
    for file, old, new in bug.changes:
        if old not in now[file]:
            return f"does not apply to {file}"
        now[file] = now[file].replace(old, new)
    for file, text in now.items():
        (tree / file).write_text(text)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider",
             "-m", "not long", bug.test],
            cwd=tree, env={**os.environ, "PYTHONPATH": str(package)}, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
    finally:
        for file, text in before.items():
            (tree / file).write_text(text)
    if done.returncode == 1:
        return ""
    return "the test passes" if done.returncode == 0 else f"the test did not run: {done.stdout}"


def table() -> str:
    lines = ["| planted | breaks | caught by |", "| --- | --- | --- |"]
    lines += [f"| {bug.name} | {bug.rule} | `{bug.test}` |" for bug in BUGS]
    return "\n".join(lines)


def main(names: list[str]) -> int:
    if names == ["--table"]:
        print(table())
        return 0
    missed = 0
    with tempfile.TemporaryDirectory(prefix="meles-planted-") as home:
        tree, package = Path(home) / "tree", Path(home) / "package"
        shutil.copytree(ROOT, tree, ignore=SKIPPED, symlinks=True)
        package.mkdir()
        (package / "meles").symlink_to(tree)
        for bug in BUGS:
            if names and bug.name not in names:
                continue
            problem = caught(bug, tree, package)
            missed += bool(problem)
            said = f"NOT CAUGHT ({problem})" if problem else "caught"
            print(f"{said:<8} {bug.rule:<6} {bug.name}  [{bug.test}]", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
