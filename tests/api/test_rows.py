"""The contract row by row: each public name has a test that shows it, by name.

A name that is public and has no row here fails, and so does a row whose test does not use it.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import meles
import pytest
from meles.engine.txn.cursor import Cursor
from named_tests import source_of

# Public by Python's rule, but for other parts of the engine.
INTERNAL = {"end", "forget_in_child", "hide_from_subscribers", "put_entry"}

# Class and attribute: the file and test that shows it. A file without folder lies here.
ROWS: dict[str, str] = {
    # the handle: single keys
    "DB.get": "single_keys: test_get_gives_the_newest_committed_value_or_the_default",
    "DB.set": "single_keys: test_a_byte_of_ones_own_goes_with_an_entry",
    "DB.delete": "single_keys: test_deleting_an_absent_key_is_fine",
    "DB.get_many": "single_keys: test_get_many_is_one_snapshot_in_the_order_asked_for",
    "DB.__getitem__": "single_keys: test_subscripting_an_absent_key_raises_key_not_found",
    "DB.__setitem__": "single_keys: test_the_operators",
    "DB.__delitem__": "single_keys: test_the_operators",
    "DB.__contains__": "single_keys: test_the_operators",
    # transactions, batches, iteration
    "DB.view": "transactions: test_a_view_sees_its_snapshot_and_writes_nothing",
    "DB.update": "transactions: test_an_update_commits_on_a_clean_exit",
    "DB.transact": "transact: test_transact_returns_what_the_function_does",
    "DB.transactional": "transact: test_a_transactional_function_is_called_without_its_transaction",
    "DB.write_batch": "batch: test_a_batch_writes_on_a_clean_exit",
    "DB.iterate": "iteration: test_all_versions_newest_first_tombstones_included",
    "DB.items": "iteration: test_everything_in_key_order_and_its_mirror",
    "DB.keys": "iteration: test_everything_in_key_order_and_its_mirror",
    "DB.values": "iteration: test_everything_in_key_order_and_its_mirror",
    "DB.__iter__": "single_keys: test_the_operators",
    # helpers
    "DB.sequence": "sequence: test_numbers_grow_from_0",
    "DB.merge_operator": "merge: test_operands_fold_in_the_order_they_were_added",
    "DB.subscribe": "subscribe: test_it_is_live_when_it_returns",
    # care
    "DB.flush": "care: test_flush_puts_the_active_memtable_on_level_zero",
    "DB.sync": "care: test_sync_covers_everything_acknowledged",
    "DB.wait_idle": "care: test_wait_idle",
    "DB.flatten": "care: test_flatten_leaves_at_most_one_level_with_data",
    "DB.gc": "care: test_gc_runs_until_no_file_qualifies_and_tells_of_each",
    "DB.backup": "backup: test_a_backup_tells_what_it_wrote",
    "DB.verify": "reports: test_verify_counts_what_it_checked",
    "DB.drop_all": "drops: test_drop_all_removes_everything_and_keeps_time_and_options",
    "DB.drop_prefix": "drops: test_drop_prefix_removes_what_begins_so",
    "DB.ban_namespace": "namespaces: test_a_banned_namespace_can_be_neither_read_nor_written",
    "DB.banned_namespaces": "namespaces: test_bans_last_and_are_listed_in_order",
    # figures
    "DB.stats": "reports: test_stats",
    "DB.levels": "reports: test_levels",
    "DB.tables": "reports: test_tables",
    "DB.size": "reports: test_size_is_what_lies_on_disk",
    "DB.space": "reports: test_space_says_what_holds_each_byte",
    "DB.estimate_size": "reports: test_estimate_size",
    "DB.max_version": "reports: test_max_version_is_the_newest_commit",
    "DB.workers": "reports: test_workers",
    "DB.health": "reports: test_health",
    "DB.close": "close: test_a_second_call_returns_the_same_report",
    "DB.__enter__": "close: test_leaving_the_block_closes",
    "DB.__exit__": "close: test_leaving_the_block_closes",
    "DB.path": "opening: test_the_handle_tells_path_options_and_whether_it_is_closed",
    "DB.closed": "opening: test_the_handle_tells_path_options_and_whether_it_is_closed",
    "DB.options": "opening: test_the_handle_tells_path_options_and_whether_it_is_closed",
    "DB.set_discard_ts": "managed: test_the_caller_says_which_versions_may_go",
    # a transaction
    "Txn.get": "transactions: test_own_writes_are_visible_in_every_way",
    "Txn.set": "transactions: test_a_transaction_takes_15_percent_of_a_memtable_and_stays_usable",
    "Txn.delete": "transactions: test_of_several_writes_of_a_key_the_last_counts",
    "Txn.item": "items: test_an_absent_key_has_no_item",
    "Txn.__getitem__": "single_keys: test_the_operators",
    "Txn.__setitem__": "single_keys: test_the_operators",
    "Txn.__delitem__": "single_keys: test_the_operators",
    "Txn.__contains__": "single_keys: test_the_operators",
    "Txn.__iter__": "transactions: test_own_writes_are_visible_in_every_way",
    "Txn.__enter__": "transactions: test_an_update_commits_on_a_clean_exit",
    "Txn.__exit__": "transactions: test_an_update_is_discarded_by_an_exception",
    "Txn.iterate": "items: test_a_pending_item_has_the_version_of_the_snapshot",
    "Txn.items": "transactions: test_own_writes_are_visible_in_every_way",
    "Txn.keys": "transactions: test_phantoms_conflict",
    "Txn.values": "transactions: test_own_writes_are_visible_in_every_way",
    "Txn.commit": "transactions: test_commit_gives_the_timestamp_and_0_for_nothing",
    "Txn.commit_at": "managed: test_conflicts_are_found_by_the_callers_timestamps",
    "Txn.discard": "transactions: test_a_finished_transaction_raises_on_any_use",
    "Txn.read_ts": "items: test_a_pending_item_has_the_version_of_the_snapshot",
    "Txn.commit_ts": "transactions: test_commit_gives_the_timestamp_and_0_for_nothing",
    # a batch, a sequence, a merge operator, a subscription
    "WriteBatch.set": "batch: test_set_takes_ttl_meta_and_discard_earlier",
    "WriteBatch.delete": "batch: test_a_batch_writes_on_a_clean_exit",
    "WriteBatch.__setitem__": "single_keys: test_the_operators",
    "WriteBatch.__delitem__": "single_keys: test_the_operators",
    "WriteBatch.flush": "batch: test_it_is_usable_again_after_flush",
    "WriteBatch.cancel": "batch: test_it_is_not_usable_after_cancel_or_exit",
    "WriteBatch.__enter__": "batch: test_a_batch_writes_on_a_clean_exit",
    "WriteBatch.__exit__": "batch: test_an_exception_cancels_what_was_not_flushed",
    "Sequence.__next__": "sequence: test_numbers_grow_from_0",
    "Sequence.__iter__": "sequence: test_leases_follow_each_other",
    "Sequence.release": "sequence: test_release_gives_back_what_was_not_used",
    "Sequence.__enter__": "sequence: test_leaving_the_block_releases",
    "Sequence.__exit__": "sequence: test_leaving_the_block_releases",
    "MergeOperator.add": "merge: test_operands_fold_in_the_order_they_were_added",
    "MergeOperator.get": "merge: test_nothing_added_is_key_not_found",
    "MergeOperator.stop": "merge: test_after_stop_it_is_closed",
    "MergeOperator.__enter__": "merge: test_operands_fold_in_the_order_they_were_added",
    "MergeOperator.__exit__": "merge: test_operands_fold_in_the_order_they_were_added",
    "Subscription.__next__": "subscribe: test_a_change_tells_everything",
    "Subscription.__iter__": "subscribe: test_closing_it_ends_the_iterator",
    "Subscription.next_change": "subscribe: test_waiting_for_a_change_takes_a_timeout",
    "Subscription.close": "subscribe: test_closing_it_ends_the_iterator",
    "Subscription.__enter__": "subscribe: test_a_change_tells_everything",
    "Subscription.__exit__": "subscribe: test_a_change_tells_everything",
    "Change.key": "subscribe: test_a_change_tells_everything",
    "Change.value": "subscribe: test_a_change_tells_everything",
    "Change.deleted": "subscribe: test_a_change_tells_everything",
    "Change.meta": "subscribe: test_a_change_tells_everything",
    "Change.expires_at": "subscribe: test_a_change_tells_everything",
    "Change.version": "subscribe: test_a_change_tells_everything",
    "Change.missed": "subscribe: test_drop_leaves_changes_out_and_says_how_many",
    # items and iterators
    "Item.key": "items: test_the_fields_of_an_item",
    "Item.value": "items: test_the_value_is_read_when_it_is_asked_for",
    "Item.version": "items: test_the_fields_of_an_item",
    "Item.meta": "items: test_the_fields_of_an_item",
    "Item.expires_at": "items: test_never_is_0",
    "Item.deleted": "items: test_deleted_is_true_for_tombstones_and_expired_entries",
    "Item.value_size": "items: test_the_value_is_read_when_it_is_asked_for",
    "Item.is_merge": "items: test_what_an_item_says_of_the_versions_before_it",
    "Item.discards_earlier": "items: test_what_an_item_says_of_the_versions_before_it",
    "Cursor.__next__": "iterator_moves: test_next_at_the_end_stays_at_the_end",
    "Cursor.__iter__": "iterator_moves: test_forward_seek_goes_to_the_first_key_at_or_after",
    "Cursor.seek": "iterator_moves: test_forward_seek_goes_to_the_first_key_at_or_after",
    "Cursor.rewind": "iterator_moves: test_rewind_begins_again",
    "Cursor.close": "iterator_moves: test_closing_is_idempotent_and_a_context_manager_does_it",
    "Cursor.__enter__": "iterator_moves: test_closing_is_idempotent_and_a_context_manager_does_it",
    "Cursor.__exit__": "iterator_moves: test_closing_is_idempotent_and_a_context_manager_does_it",
    # reports
    **{
        f"CloseReport.{name}": "close: test_the_report_lists_each_stage"
        for name in ("stages", "clean")
    },
    **{
        f"Stage.{name}": "close: test_the_report_lists_each_stage"
        for name in ("name", "seconds", "outcome", "detail")
    },
    **{
        f"GCReport.{name}": "care: test_gc_runs_until_no_file_qualifies_and_tells_of_each"
        for name in ("examined", "rewritten", "freed_bytes", "files")
    },
    **{
        f"BackupReport.{name}": "backup: test_a_backup_tells_what_it_wrote"
        for name in ("since", "version", "entries", "bytes")
    },
    **{
        f"RestoreReport.{name}": "backup: test_restoring_tells_what_it_made"
        for name in ("path", "version", "entries", "leftovers")
    },
    **{
        f"Rotation.{name}": "encryption: test_rotate_gives_another_key"
        for name in ("path", "encrypted", "data_keys")
    },
    **{
        f"VerifyReport.{name}": "reports: test_verify_counts_what_it_checked"
        for name in ("ok", "problems", "tables", "blocks", "values")
    },
    **{
        f"Size.{name}": "reports: test_size_is_what_lies_on_disk"
        for name in ("lsm_bytes", "value_log_bytes")
    },
    **{f"Health.{name}": "reports: test_health" for name in ("status", "reasons")},
    **{
        f"SpaceReport.{name}": "reports: test_space_says_what_holds_each_byte"
        for name in ("total_bytes", "log_bytes", "table_bytes", "value_log_bytes", "pins")
    },
    **{
        f"WorkerInfo.{name}": "reports: test_workers"
        for name in ("kind", "name", "pid", "state", "job", "rss_bytes", "cpu_seconds", "restarts")
    },
    **{
        f"Stats.{name}": "reports: test_stats"
        for name in (
            "levels", "memtables", "value_log", "workers", "recovery", "flushes", "compactions",
            "gc_runs", "bytes_written", "write_amplification", "space_amplification",
            "entries_written",
        )
    },
    **{
        f"Stats.{name}": "reports: test_the_sums_of_background_work"
        for name in (
            "stalls", "compaction_read_bytes", "compaction_written_bytes", "flush_written_bytes",
            "gc_written_bytes", "dropped_entries", "cache_hits", "cache_misses", "cache_bytes",
            "published_ts", "discard_ts", "readers",
        )
    },
    **{
        f"Stats.{name}": "reports: test_the_caches_tell_how_they_do"
        for name in (
            "cache_hit_ratio", "cache_evictions", "index_cache_bytes", "index_cache_loads",
            "index_cache_evictions",
        )
    },
    "Stats.moves": "reports: test_a_table_that_overlaps_nothing_is_moved",
    "Stats.syncs": "care: test_sync_covers_everything_acknowledged",
}  # fmt: skip

CLASSES: list[type[Any]] = [
    meles.DB, meles.Txn, meles.WriteBatch, meles.Sequence, meles.MergeOperator, meles.Subscription,
    meles.Change, meles.Item, Cursor, meles.CloseReport, meles.Stage, meles.GCReport,
    meles.BackupReport, meles.RestoreReport, meles.Rotation, meles.VerifyReport, meles.Size,
    meles.Health, meles.SpaceReport, meles.WorkerInfo, meles.Stats,
]  # fmt: skip

# How a test writes what Python calls by another name.
WRITTEN = {
    "__getitem__": r"\w\[",
    "__setitem__": r"\] = |\], .* = ",
    "__delitem__": r"\bdel \w+\[",
    "__contains__": r"\bin ",
    "__iter__": r"\b(for|list|islice|iter|dict|next)\b",
    "__next__": r"\b(next|list|islice)\(",
    "__enter__": r"\bwith\b",
    "__exit__": r"\bwith\b",
}


def public(kind: type[Any]) -> set[str]:
    """Its public names, and the special ones that users call by an operator or a statement."""
    data = kind.__module__.endswith(("reports", "subscribe", "worker_info"))
    special = set() if data and kind is not meles.Subscription else set(WRITTEN) & set(dir(kind))
    names = {name for name in dir(kind) if not name.startswith("_")} - INTERNAL
    return {f"{kind.__name__}.{name}" for name in names | special}


def test_every_public_name_has_a_row() -> None:
    assert set(ROWS) == {name for kind in CLASSES for name in public(kind)}


@pytest.mark.parametrize("row", ROWS)
def test_the_test_of_a_row_uses_it(row: str) -> None:
    name = row.split(".")[1]
    assert re.search(WRITTEN.get(name, rf"\b{name}\b"), source_of(ROWS[row]))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_everything_public_says_what_it_does(kind: type[Any]) -> None:
    assert kind.__doc__
    for row in public(kind):
        name = row.split(".")[1]
        found = inspect.getattr_static(kind, name)
        if not name.startswith("__") and (callable(found) or isinstance(found, property)):
            assert len(found.__doc__ or "") > 20, row
