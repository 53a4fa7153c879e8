"""The judge must be able to condemn: every kind of violation, planted, is reported."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace

import meles
import pytest
from meles.engine.stress.judge import Checker
from meles.engine.stress.ledger import (
    DELETE,
    SET,
    Ledger,
    LedgerFile,
    Observation,
    digest,
    make_value,
    observe,
    txn_of,
    value_fault,
)


def d(txn, index=0, length=200):
    return digest(make_value(txn, 0, 1, index, length))


class Story:
    """A little history: what was promised, and a database that keeps it until told not to."""

    def __init__(self):
        self.events = [["O", 1]]
        self.shown = {}  # key: version, digest
        self.keys = set()
        self.max = 0

    def begin(self, txn, writes, client=1):
        rows = [[key, DELETE, ""] if value is None else [key, SET, value] for key, value in writes]
        self.keys.update(key for key, _ in writes)
        self.events.append(["B", txn, client, txn, rows])
        return self

    def land(self, writes, ts):
        """The commit takes effect in the database."""
        self.max = max(self.max, ts)
        for key, value in writes:
            if value is None:
                self.shown.pop(key, None)
            else:
                self.shown[key] = (ts, value)
        return self

    def commit(self, txn, ts, writes, client=1, told=True):
        self.begin(txn, writes, client).land(writes, ts)
        self.events.append(["K", txn, ts if told else None])
        return self

    def seen(self):
        forward = [(key, *self.shown[key]) for key in sorted(self.shown)]
        reverse = [(key, value) for key, _, value in reversed(forward)]
        gets = {key: self.shown.get(key, (0, None))[1] for key in sorted(self.keys)}
        return Observation(forward, reverse, gets, self.max)

    def look(self, seen=None):
        plain = asdict(self.seen() if seen is None else seen)
        self.events.append(["F", json.loads(json.dumps(plain))])
        return self

    def rules(self):
        """Which rules were broken, according to the judge."""
        checker = Checker()
        checker.feed(self.events)
        return {violation.rule for violation in checker.violations}


@pytest.fixture
def story():
    """Four commits, one key deleted, one overwritten; observed once, then two more."""
    told = Story()
    told.commit(1, 1, [("a", d(1)), ("b", d(1, 1))])
    told.commit(2, 2, [("b", d(2)), ("c", d(2, 1))], client=2)
    told.commit(3, 3, [("c", None), ("d", d(3))])
    told.commit(4, 4, [("e", d(4))], told=False)
    told.look()
    told.commit(5, 5, [("a", d(5)), ("f", d(5, 1))])
    told.commit(6, 6, [("e", None)], client=2)
    return told


# -- what is right -------------------------------------------------------------------------------


def test_a_database_that_keeps_its_promises_is_let_be(story):
    assert story.look().rules() == set()
    assert story.look().look().rules() == set()


def test_a_commit_that_was_not_acknowledged_may_be_there_whole(story):
    writes = [("b", d(7)), ("g", d(7, 1)), ("f", None)]
    story.begin(7, writes).land(writes, 7)
    assert story.look().rules() == set()


def test_a_commit_that_was_not_acknowledged_may_be_absent(story):
    story.begin(7, [("b", d(7)), ("g", d(7, 1)), ("f", None)])
    assert story.look().rules() == set()


def test_two_that_were_not_acknowledged_may_overwrite_each_other(story):
    first, second = [("b", d(7)), ("g", d(7, 1))], [("b", d(8)), ("h", d(8, 1))]
    story.begin(7, first, client=1).begin(8, second, client=2)
    story.land(first, 7).land(second, 8)
    assert story.look().rules() == set()


def test_an_overwritten_commit_without_an_answer_may_hide(story):
    story.begin(7, [("b", d(7))], client=1).land([("b", d(7))], 7)
    story.commit(8, 8, [("b", d(8))], client=2)
    assert story.look().rules() == set()


def test_a_lone_delete_without_an_answer_may_be_there(story):
    story.begin(7, [("f", None)]).land([("f", None)], 7)
    assert story.look().rules() == set()


def test_equal_short_values_are_told_apart_by_their_versions(story):
    empty = digest(b"")
    first, second = [("b", empty), ("g", d(7))], [("b", empty), ("h", d(8))]
    story.begin(7, first, client=1).begin(8, second, client=2)
    story.land(first, 7).land(second, 8)
    assert story.look().rules() == set()


# -- what is wrong -------------------------------------------------------------------------------


def test_a_lost_commit(story):
    story.shown.pop("f")
    story.shown["a"] = (1, d(1))
    assert "D1" in story.look().rules()


def test_the_newest_commit_lost_without_a_trace(story):
    """Its only key is as it was before."""
    story.shown["e"] = (4, d(4))
    story.max = 5
    assert "D1" in story.look().rules()


def test_a_lost_commit_without_a_known_ts(story):
    story.commit(7, 7, [("g", d(7))], told=False)
    del story.shown["g"]
    assert "D1" in story.look().rules()


def test_a_lost_delete_is_a_resurrection(story):
    story.shown["c"] = (2, d(2, 1))
    assert {"R", "D1"} <= story.look().rules()


def test_a_key_deleted_long_ago_comes_back(story):
    story.look()
    story.shown["c"] = (2, d(2, 1))
    assert "R" in story.look().rules()


def test_an_overwritten_value_comes_back(story):
    story.shown["b"] = (1, d(1, 1))
    assert "R" in story.look().rules()


def test_a_hole(story):
    """An acknowledged commit is gone and a later one is there."""
    story.commit(7, 7, [("g", d(7))]).commit(8, 8, [("h", d(8))])
    del story.shown["g"]
    assert {"P", "D1"} <= story.look().rules()


def test_a_hole_where_nothing_was_acknowledged(story):
    """Commit 7 was lost, 8 was not: neither had an answer."""
    story.begin(7, [("g", d(7))], client=1)
    story.begin(8, [("h", d(8))], client=2).land([("h", d(8))], 8)
    assert story.look().rules() == {"P"}


def test_a_torn_transaction(story):
    writes = [("b", d(7)), ("g", d(7, 1))]
    story.begin(7, writes).land(writes[:1], 7)
    assert "A" in story.look().rules()


def test_a_transaction_without_its_delete(story):
    writes = [("g", d(7)), ("f", None)]
    story.begin(7, writes).land(writes[:1], 7)
    assert "A" in story.look().rules()


def test_a_transaction_at_two_timestamps(story):
    writes = [("b", d(7)), ("g", d(7, 1))]
    story.begin(7, writes).land(writes[:1], 7).land(writes[1:], 8)
    assert "A" in story.look().rules()


def test_a_wrong_value(story):
    story.shown["a"] = (5, d(99))
    assert {"R", "D1"} <= story.look().rules()


def test_a_wrong_version(story):
    story.shown["a"] = (4, d(5))
    assert story.look().rules() != set()


def test_a_value_nobody_wrote(story):
    story.shown["x"] = (6, d(99))
    assert "R" in story.look().rules()


def test_a_refused_commit_is_there(story):
    story.begin(7, [("g", d(7))])
    story.events.append(["N", 7, "ConflictError"])
    story.land([("g", d(7))], 7)
    assert "R" in story.look().rules()


def test_a_commit_that_was_lost_comes_back(story):
    story.begin(7, [("g", d(7))]).look()
    story.land([("g", d(7))], 7)
    assert "R" in story.look().rules()


def test_a_commit_that_was_there_is_lost_at_the_next_crash(story):
    story.begin(7, [("g", d(7))]).land([("g", d(7))], 7).look()
    del story.shown["g"]
    assert "D1" in story.look().rules()


def test_a_commit_a_reader_saw_is_lost(story):
    story.begin(7, [("g", d(7)), ("b", d(7, 1))])
    story.events.append(["W", 7, 7])
    assert "A" in story.look().rules()


def test_a_reader_sees_what_was_refused(story):
    story.begin(7, [("g", d(7))])
    story.events += [["N", 7, "ConflictError"], ["W", 7, 7]]
    assert "R" in story.rules()


def test_a_timestamp_is_given_twice(story):
    story.commit(7, 6, [("g", d(7))])
    assert "M" in story.rules()


def test_a_timestamp_from_before_the_crash(story):
    story.look().begin(7, [("g", d(7))])
    story.events.append(["K", 7, 3])
    assert "M" in story.rules()


def test_timestamps_go_back_after_a_crash(story):
    assert "M" in story.look().look(replace(story.seen(), max_version=5)).rules()


def test_a_number_without_a_commit(story):
    story.max = 7
    assert story.look().rules() == {"P"}


def test_a_number_less_than_commits(story):
    story.commit(7, 7, [("g", d(7))], told=False)
    story.max = 6
    assert story.look().rules() != set()


@pytest.mark.parametrize("lie", ["reverse", "gets", "order", "twice"])
def test_ways_of_reading_that_disagree(story, lie):
    seen = story.seen()
    if lie == "reverse":
        seen = replace(seen, reverse=seen.reverse[1:])
    elif lie == "gets":
        seen = replace(seen, gets={**seen.gets, "c": d(2, 1)})
    elif lie == "order":
        seen = replace(seen, forward=[seen.forward[1], seen.forward[0], *seen.forward[2:]])
    else:
        seen = replace(seen, forward=[seen.forward[0], *seen.forward])
    assert "W" in story.look(seen).rules()


def test_a_deleted_key_only_get_knows(story):
    seen = story.seen()
    assert "W" in story.look(replace(seen, gets={**seen.gets, "e": d(4)})).rules()


def test_what_the_load_itself_saw(story):
    story.events.append(["X", "a scan and a get differ"])
    assert story.rules() == {"W"}


# -- values and files ----------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 27, 28, 29, 1024, 65536])
def test_values_have_their_length_and_say_what_they_are(length):
    value = make_value(77, 5, 2, 1, length)
    assert len(value) == length
    assert value_fault(value) == ""
    assert txn_of(value) == (77 if length >= 28 else None)
    assert length < 8 or value != make_value(78, 5, 2, 1, length)


def test_values_that_are_torn_mixed_foreign_or_cut_are_recognised():
    value, other = make_value(77, 5, 2, 1, 4096), make_value(78, 5, 2, 1, 4096)
    assert value_fault(value[:2048] + other[2048:]) != ""
    assert value_fault(value[:-1]) != ""
    assert value_fault(b"\0" * 4096) != ""
    assert value_fault(value[:100] + b"\0" * 512 + value[612:]) != ""


def test_counters_are_summed_over_runs():
    checker = Checker()
    checker.feed([["O", 1], ["G", {"flushes": 1}], ["G", {"flushes": 3}], ["O", 2]])
    checker.feed([["G", {"flushes": 2}]])
    assert checker.finish() == {"flushes": 5}


def test_a_line_cut_short_spoils_no_other(tmp_path):
    path = tmp_path / "ledger"
    ledger, reader = Ledger(path), LedgerFile(path)
    ledger.begin(1, 0, 1, [("a", SET, "x")])
    with path.open("ab") as file:
        file.write(b'\n["K",1')
    assert reader.more() == [["B", 1, 0, 1, [["a", "S", "x"]]]]
    ledger.acked(2, None)
    assert reader.more() == [["K", 2, None]]
    assert reader.torn == 1
    ledger.close()


def test_a_ledger_that_cannot_be_written_stops_the_load(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    ledger.close()
    with pytest.raises(OSError, match="descriptor"):
        ledger.acked(1, 1)


def test_an_observation_is_what_the_database_shows(tmp_path):
    value = make_value(3, 1, 1, 0, 3000)
    with meles.open(tmp_path / "db", workers="inline") as db:
        db.set(b"a", value)
        db.set(b"b", os.urandom(100))
        db.set(b"c", b"x")
        db.delete(b"c")
        seen = observe(db, ["a", "c"])
    assert seen.forward[0] == ("a", 1, digest(value))
    assert [key for key, _ in seen.reverse] == ["b", "a"]
    assert seen.gets == {"a": digest(value), "c": None}
    assert seen.max_version == 4
    assert len(seen.faults) == 2  # met by both scans
    assert Observation.from_plain(json.loads(json.dumps(asdict(seen)))) == seen
