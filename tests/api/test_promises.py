"""Which test shows each promise of the contract that is no name, that each defect of Badger in the
part the contract takes over is not here, and what each of Badger's errors became.

The tables are pairs of lines: what is shown, and the file and test that shows it.
"""

from __future__ import annotations

import pytest
from named_tests import source_of

PROMISES = """\
own: 0700, made if missing
    opening: test_directories_are_0700_and_files_0600_whatever_the_umask
read_only: works after a crash, writes nothing
    read_only: test_it_works_after_a_crash_and_changes_nothing
read_only: starts no process
    read_only: test_it_starts_no_process_and_no_thread
read_only: refused while an owner is alive
    read_only: test_it_is_refused_while_an_owner_is_alive
read_only: missing or empty raises and makes nothing
    read_only: test_where_there_is_no_database_nothing_is_made
read_only: everything that writes raises ReadOnlyError
    read_only: test_writing_raises_read_only_error
memory: a private directory in tmpfs, removed on close
    memory_mode: test_the_directory_is_private_and_removed_on_close
memory: falls back to a temporary directory
    memory_mode: test_without_tmpfs_a_temporary_directory_serves
file, environment, keywords, in that order
    options: test_keywords_beat_the_environment_beats_the_file
wait: seconds to wait for the lock
    opening: test_waiting_for_the_lock
a failure leaves nothing behind
    opening: test_misuse_is_a_config_error_and_leaves_nothing
every option and its default
    options: test_every_option_is_a_field_with_its_default
a bad option is told in full
    options: test_a_bad_option_names_itself_its_value_what_is_allowed_and_its_origin
an unknown option is refused, an unknown variable ignored
    options: test_unknown_variables_are_ignored_and_unknown_options_are_not
least sizes
    options: test_the_least_that_is_allowed
value_threshold=0 puts every value in the value log
    options: test_a_threshold_of_0_puts_every_value_in_the_value_log
num_compactors=0
    options: test_no_compactors_no_compaction
an idle database is small
    opening: test_an_idle_database_is_small_whatever_its_options
two databases on one value_dir exclude each other
    opening: test_two_databases_on_one_value_directory_exclude_each_other
LockedError says who
    opening: test_a_second_owner_is_refused_and_told_who_the_first_is
import starts, logs and loads nothing
    import: test_importing_starts_nothing_and_loads_no_engine
anything bytes-like goes in, bytes come out
    single_keys: test_anything_bytes_like_goes_in_and_bytes_come_out
a str is a TypeError that says to encode
    single_keys: test_a_str_is_a_type_error_that_says_to_encode
options of set are keywords
    single_keys: test_options_of_set_are_keywords
times are seconds or a timedelta
    options: test_times_are_seconds_or_a_timedelta
what can block takes a timeout
    care: test_every_call_that_can_block_takes_a_timeout
closing is idempotent
    close: test_a_second_call_returns_the_same_report
keys of 1 to 65,000 bytes
    single_keys: test_keys_of_1_to_65000_bytes
reserved keys are refused
    single_keys: test_keys_no_entry_may_have
a key no write could create is absent
    single_keys: test_a_key_that_no_write_could_create_is_simply_absent
an empty key is invalid to read too
    single_keys: test_the_empty_key_is_invalid_to_read_too
an empty value is b''
    single_keys: test_an_empty_value_is_empty_bytes_not_none
value <= value_log_file_size
    transactions: test_a_value_larger_than_a_value_log_file_is_too_big
a transaction takes 15 % of memtable_size
    transactions: test_a_transaction_takes_15_percent_of_a_memtable_and_stays_usable
large values count as pointers
    transactions: test_large_values_count_as_their_pointers
a snapshot holds every commit acknowledged before it
    transactions: test_a_snapshot_holds_every_commit_acknowledged_before_it_began
commit order is timestamp order
    transactions: test_commit_order_is_timestamp_order
ranges conflict, phantoms cannot commit
    transactions: test_phantoms_conflict
covered is up to the last item given
    transactions: test_what_was_not_covered_does_not_conflict
blind writes and readers never conflict
    transactions: test_blind_writes_and_read_only_transactions_never_conflict
reading one's own write is no read
    transactions: test_reading_ones_own_write_is_no_read
detect_conflicts=False
    transactions: test_detection_can_be_turned_off
ending a transaction closes its iterators
    transactions: test_ending_a_transaction_ends_its_iterators
closing ends everything with ClosedError
    transactions: test_closing_the_database_ends_everything_with_closed_error
ClosedError wins
    close: test_every_call_on_a_closed_handle_raises_closed_error
a forgotten transaction lets go with a warning
    transactions: test_a_forgotten_transaction_lets_go_of_its_snapshot
what conflicts are found by is bounded
    engine/txn/conflicts: test_what_conflicts_are_found_by_does_not_grow_while_a_reader_stays
retries are attempts after the first
    transact: test_retries_are_the_attempts_after_the_first
a pending item has version read_ts
    items: test_a_pending_item_has_the_version_of_the_snapshot
view(at=) works everywhere
    transactions: test_reading_at_a_timestamp_works_everywhere
one thread at a time
    transactions: test_a_transaction_may_move_to_another_thread
start inclusive, stop exclusive
    iteration: test_start_is_inclusive_and_stop_exclusive_whatever_the_direction
reverse with prefix
    iteration: test_prefix_in_both_directions
all_versions
    iteration: test_all_versions_newest_first_tombstones_included
reverse all_versions
    iteration: test_in_reverse_keys_run_backwards_and_versions_stay_newest_first
since is exclusive
    iteration: test_since_is_exclusive
limit
    iteration: test_limit
limit counts anew
    iterator_moves: test_limit_counts_anew_after_seek_and_rewind
later writes are not seen
    iteration: test_an_iterator_does_not_see_what_its_transaction_writes_later
seek clamps
    iterator_moves: test_seeking_outside_the_range_clamps
own snapshot for the life of the iterator
    iteration: test_an_iterator_of_the_database_keeps_its_own_snapshot
outlives flush, compaction, collection, deletion
    engine/txn/cursor: test_an_iterator_outlives_flush_compaction_collection_and_the_files
begins at set
    ttl: test_it_begins_at_set_not_at_commit
0 or less is a ValueError
    ttl: test_a_ttl_of_0_or_less_is_a_value_error
judged at read time everywhere
    ttl: test_what_has_expired_is_gone_everywhere
survives flush, compaction, reopening
    ttl: test_it_survives_flush_compaction_and_reopening
discard_earlier
    single_keys: test_discard_earlier_ends_the_history_of_a_key
num_versions_to_keep
    options: test_versions_are_kept_as_asked
a batch splits itself
    batch: test_it_splits_itself_and_each_part_is_a_commit
an exception cancels what was not flushed
    batch: test_an_exception_cancels_what_was_not_flushed
leases survive crashes
    sequence: test_a_crash_wastes_the_lease_and_repeats_nothing
a plain set is the new base
    merge: test_a_plain_set_is_the_new_base_value
folding frees the operands
    merge: test_folding_is_what_frees_the_operands
add after stop raises ClosedError
    merge: test_after_stop_it_is_closed
changes in commit order, keys in the order of writing
    subscribe: test_changes_come_in_commit_order_and_within_one_in_the_order_of_writing
block
    subscribe: test_block_holds_the_writer_until_there_is_room
drop
    subscribe: test_drop_leaves_changes_out_and_says_how_many
raise
    subscribe: test_raise_hits_the_subscriber_never_the_writer
closing ends the iterator
    subscribe: test_closing_the_database_ends_the_iterator_after_what_was_queued
readers are never blocked by a drop
    drops: test_readers_are_never_blocked
older snapshots see what was dropped
    drops: test_snapshots_older_than_a_drop_keep_seeing_its_data
drop_prefix() raises ValueError
    drops: test_drop_prefix_takes_at_least_one
bans last
    namespaces: test_bans_last_and_are_listed_in_order
managed: plain writes raise
    managed: test_writes_without_a_timestamp_raise
managed: plain commit raises
    managed: test_plain_commit_raises_and_the_transaction_goes_on
commit_at elsewhere raises
    managed: test_outside_managed_mode_timestamps_are_the_engines
a forked child is refused everything
    fork: test_everything_is_refused_in_the_child_and_works_in_the_parent
every error has its base, fields, hint
    errors: test_every_error_has_its_bases_its_fields_and_a_hint
damage never answers wrongly
    reports: test_damaged_values_raise_and_are_never_made_up
"""

# Defects of Badger v4.0.1, found by running it, and the test that says it is not so here.
DEFECTS = """\
a backup since what the last one returned lacks an entry or has one twice
    backup: test_increments_of_a_restored_database_go_on
deleted keys are back after restoring increments
    backup: test_a_deleted_key_does_not_come_back
loading a stream that was cut leaves a part of it
    security/backup_stream: test_a_stream_cut_anywhere
loading changes a database that is in use
    backup: test_only_into_a_new_or_empty_directory
a failed open hands out a half-built handle
    opening: test_misuse_is_a_config_error_and_leaves_nothing
an unknown option ends the process
    options: test_unknown_variables_are_ignored_and_unknown_options_are_not
a commit or read racing close panics
    close: test_closing_under_load_gives_the_others_closed_error_and_nothing_else
an iterator works on after close
    transactions: test_closing_the_database_ends_everything_with_closed_error
conflicts are not retried
    transact: test_it_runs_again_after_conflicts
timestamps begin again after drop_all and reopening
    drops: test_a_drop_lasts
drop_prefix blocks readers
    drops: test_readers_are_never_blocked
a drop refuses writers
    drops: test_writers_go_on_while_something_is_dropped
a drop on a read-only handle panics
    read_only: test_writing_raises_read_only_error
sync leaves the log out
    engine/durability: test_sync_makes_everything_last
verifying a damaged table panics
    reports: test_verify_finds_damage_wherever_it_is
sizes are 0 after opening
    reports: test_size_right_after_opening
estimates leave memory out
    reports: test_estimate_size
keys and values are not copied
    single_keys: test_what_went_in_is_copied_when_it_is_set
an empty commit leaks its read mark
    engine/txn/txn: test_a_commit_of_nothing_is_0_and_lets_go_of_the_snapshot
a second commit is an error without a type
    transactions: test_a_finished_transaction_raises_on_any_use
discarding with an open iterator panics
    transactions: test_ending_a_transaction_ends_its_iterators
each write of a key is charged
    transactions: test_a_replaced_write_does_not_count_towards_the_limit
a large value in memory mode ends the process
    memory_mode: test_large_values_are_as_welcome_as_elsewhere
a damaged value is nothing, without an error
    reports: test_damaged_values_raise_and_are_never_made_up
an empty value is nothing
    single_keys: test_an_empty_value_is_empty_bytes_not_none
time to live in whole seconds
    ttl: test_it_is_kept_to_the_millisecond
reverse all_versions turns the versions around
    iteration: test_in_reverse_keys_run_backwards_and_versions_stay_newest_first
reverse with prefix finds nothing
    iteration: test_prefix_in_both_directions
next behind the end panics
    iterator_moves: test_next_at_the_end_stays_at_the_end
an item is used again by the next
    iteration: test_keys_only_items_still_have_their_values
mode misuse panics
    managed: test_writes_without_a_timestamp_raise
timestamp 0
    managed: test_no_timestamp_is_0
commits below what was cleaned up end the process
    managed: test_versions_may_come_in_any_order
one version twice in a managed batch
    managed: test_a_key_written_twice_at_one_timestamp_has_the_last_value
results of a fold share memory
    merge: test_the_function_may_use_one_buffer_for_all_results
operands stay behind when they are folded
    merge: test_folding_is_what_frees_the_operands
a delete arrives as an empty value
    subscribe: test_a_change_tells_everything
internal keys and folds are published
    subscribe: test_what_the_engine_does_by_itself_is_no_change
a change arrives before it can be read
    subscribe: test_a_change_can_be_read_when_it_arrives
a slow subscriber blocks writers for good
    subscribe: test_raise_hits_the_subscriber_never_the_writer
phantoms commit
    transactions: test_phantoms_conflict
recent commits are kept while a reader is open
    engine/txn/conflicts: test_what_conflicts_are_found_by_does_not_grow_while_a_reader_stays
a failed commit conflicts
    engine/txn/conflicts: test_a_commit_that_failed_conflicts_with_nobody
a forgotten transaction pins garbage for ever
    engine/txn/txn: test_a_forgotten_transaction_warns_and_lets_go
a failed write fails commits that were applied
    faults/every_call: test_some_calls
deleted keys come back after a collection
    care: test_deleted_keys_do_not_come_back
"""

# Badger's table of errors: what triggers each, and the test that says what happens here.
ERRORS = """\
ErrKeyNotFound
    single_keys: test_subscripting_an_absent_key_raises_key_not_found
ErrEmptyKey
    single_keys: test_the_empty_key_is_invalid_to_read_too
ErrInvalidKey, key too long
    single_keys: test_keys_no_entry_may_have
a str
    single_keys: test_a_str_is_a_type_error_that_says_to_encode
ErrBannedKey
    namespaces: test_a_banned_namespace_can_be_neither_read_nor_written
ErrDiscardedTxn
    transactions: test_a_finished_transaction_raises_on_any_use
two threads on one transaction
    transactions: test_two_threads_at_once_get_clear_errors_and_one_whole_commit
two threads on one iterator
    transactions: test_two_threads_on_one_iterator_get_an_error_and_no_crash
ErrReadOnlyTxn
    transactions: test_a_view_sees_its_snapshot_and_writes_nothing
ErrTxnTooBig
    transactions: test_a_transaction_takes_15_percent_of_a_memtable_and_stays_usable
a huge value
    transactions: test_a_value_larger_than_a_value_log_file_is_too_big
ErrConflict
    transactions: test_what_was_read_and_changed_since_is_a_conflict
ErrNoRewrite
    care: test_gc_runs_until_no_file_qualifies_and_tells_of_each
ErrRejected
    care: test_several_callers_at_once_all_come_back
ErrInvalidRequest
    care: test_other_ratios_are_config_errors
ErrGCInReadOnlyMode
    read_only: test_writing_raises_read_only_error
ErrBlockedWrites
    drops: test_writers_go_on_while_something_is_dropped
ErrDBClosed
    close: test_every_call_on_a_closed_handle_raises_closed_error
read racing close
    close: test_closing_under_load_gives_the_others_closed_error_and_nothing_else
ErrTruncateNeeded
    read_only: test_it_works_after_a_crash_and_changes_nothing
ErrNamespaceMode
    namespaces: test_without_an_offset_there_are_no_namespaces
ErrZeroBandwidth
    sequence: test_other_bandwidths_are_config_errors
ErrNilCallback
    merge: test_the_function_is_one_and_gives_bytes
ErrEncryptionKeyMismatch
    encryption: test_another_key_is_refused_and_nothing_is_touched
ErrManagedTxn
    managed: test_writes_without_a_timestamp_raise
ErrCommitAfterFinish
    batch: test_it_is_not_usable_after_cancel_or_exit
ErrChecksumMismatch
    reports: test_damaged_values_raise_and_are_never_made_up
the directory is locked
    opening: test_a_second_owner_is_refused_and_told_who_the_first_is
reading where there is nothing
    read_only: test_where_there_is_no_database_nothing_is_made
a damaged MANIFEST
    opening: test_damage_is_reported_and_nothing_is_touched
another external magic
    opening: test_another_external_magic_is_refused
a percentile out of bounds
    options: test_a_ratio_lies_between
stall at too few tables
    opening: test_misuse_is_a_config_error_and_leaves_nothing
compression without a cache
    options: test_compression
wrapping loses what an error is
    errors: test_raised_errors_have_hints_and_no_key_or_value_in_them
fork after open
    fork: test_everything_is_refused_in_the_child_and_works_in_the_parent
"""


def rows(table: str) -> list[tuple[str, str]]:
    lines = table.splitlines()
    return [(what, where.strip()) for what, where in zip(lines[::2], lines[1::2], strict=True)]


@pytest.mark.parametrize(("what", "where"), [*rows(PROMISES), *rows(DEFECTS), *rows(ERRORS)])
def test_somebody_shows_it(what: str, where: str) -> None:
    assert source_of(where), what
