"""A corpus grows by generations: with any number of writers, its live rows are always those of exactly one listing of the source."""

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gsec_core.errors import GsecError, Refused
from gsec_core.store import Corpus, Generation, Store
from gsec_core.store.corpus import EMPTY
from gsec_core.store.files import Files, LocalFiles
from gsec_core.tables import IMAGES

from .examples import images, reproducible
from .simulation import machine

Listing = dict[str, str]
"""The content of a source: URI -> version."""


@pytest.fixture
def any_corpus(any_store: Store) -> Corpus:
    """An empty corpus on each kind of filesystem."""
    return any_store.corpus("birds")


@pytest.fixture
def corpus() -> Corpus:
    return Store.open(f"memory://{uuid4().hex}").corpus("birds")


def live(corpus: Corpus, generation: Generation | None = None) -> Listing:
    rows = corpus.live_rows(generation or corpus.generation())
    listing = dict(zip(rows["uri"].to_pylist(), rows["version"].to_pylist(), strict=True))
    assert len(listing) == rows.num_rows, "an image has two live rows"
    return listing


def damage(corpus: Corpus, shard: str) -> None:
    corpus.files.replace(corpus.images.path(shard), b"PAR1 of a disk that forgets")


# Generations


def test_a_corpus_begins_empty(any_corpus: Corpus) -> None:
    assert any_corpus.generation() == EMPTY
    assert live(any_corpus) == {}


def test_live_rows_are_the_rows_that_were_added(any_corpus: Corpus) -> None:
    assert any_corpus.add_generation(EMPTY, [images({"a.jpg": "1", "b.jpg": "1"}), images({"c.jpg": "1"})])
    assert live(any_corpus) == {"a.jpg": "1", "b.jpg": "1", "c.jpg": "1"}


def test_each_live_row_names_the_shard_that_holds_it(corpus: Corpus) -> None:
    corpus.add_generation(EMPTY, [images({"a.jpg": "1"}), images({"b.jpg": "1"})])
    for row in corpus.live_rows(corpus.generation()).to_pylist():
        assert corpus.images.read(row["shard"])["uri"].to_pylist() == [row["uri"]]


def test_live_rows_have_the_columns_of_images_and_a_column_shard(corpus: Corpus) -> None:
    corpus.add_generation(EMPTY, [images({"a.jpg": "1"})])
    expected = [field for field in IMAGES if field.name != "deleted"]
    for generation in (EMPTY, corpus.generation()):
        schema = corpus.live_rows(generation).schema
        assert schema.names == [*(field.name for field in expected), "shard"]
        assert schema.types == [*(field.type for field in expected), pa.string()]


def test_the_newest_row_of_an_image_counts(corpus: Corpus) -> None:
    corpus.add_generation(EMPTY, [images({"a.jpg": "1", "b.jpg": "1"})])
    corpus.add_generation(corpus.generation(), [images({"a.jpg": "2"})])
    assert live(corpus) == {"a.jpg": "2", "b.jpg": "1"}


def test_an_image_with_a_tombstone_is_not_live(corpus: Corpus) -> None:
    corpus.add_generation(EMPTY, [images({"a.jpg": "1", "b.jpg": "1"})])
    corpus.add_generation(corpus.generation(), [images({"a.jpg": None})])
    assert live(corpus) == {"b.jpg": "1"}


def test_a_deleted_image_that_returns_is_live_again(corpus: Corpus) -> None:
    for version in ("1", None, "1"):
        corpus.add_generation(corpus.generation(), [images({"a.jpg": version})])
    assert live(corpus) == {"a.jpg": "1"}


def test_an_unchanged_image_that_is_listed_again_goes_into_a_new_shard(corpus: Corpus) -> None:
    """This lets an image that was missing at its encoding be encoded now: its old shard counts as done."""
    corpus.add_generation(EMPTY, [images({"a.jpg": "1"})])
    corpus.add_generation(corpus.generation(), [images({"a.jpg": "1"})])
    assert len(set(corpus.generation().shard_names)) == 2


def test_an_older_generation_keeps_its_live_rows(corpus: Corpus) -> None:
    corpus.add_generation(EMPTY, [images({"a.jpg": "1"})])
    corpus.add_generation(corpus.generation(), [images({"a.jpg": None, "b.jpg": "1"})])
    assert live(corpus, corpus.generation(1)) == {"a.jpg": "1"}


def test_a_generation_records_for_each_shard_its_rows_and_the_generation_that_wrote_it(any_corpus: Corpus) -> None:
    any_corpus.add_generation(EMPTY, [images({"a.jpg": "1", "b.jpg": "1"})])
    any_corpus.add_generation(any_corpus.generation(), [images({"c.jpg": "1"})])
    assert [(shard.rows, shard.generation) for shard in any_corpus.generation().shards] == [(2, 1), (1, 2)]
    assert any_corpus.generation_numbers() == [1, 2]


def test_the_tenth_generation_is_newer_than_the_ninth(corpus: Corpus) -> None:
    for number in range(1, 11):
        corpus.add_generation(corpus.generation(), [images({"a.jpg": str(number)})])
    assert live(corpus) == {"a.jpg": "10"}


def test_the_second_of_two_writers_on_one_base_adds_nothing(any_corpus: Corpus) -> None:
    assert any_corpus.add_generation(EMPTY, [images({"a.jpg": "1"})])
    assert not any_corpus.add_generation(EMPTY, [images({"b.jpg": "1"})])
    assert live(any_corpus) == {"a.jpg": "1"}


def test_the_second_of_two_writers_can_add_its_rows_on_the_new_base(any_corpus: Corpus) -> None:
    any_corpus.add_generation(EMPTY, [images({"a.jpg": "1"})])
    assert not any_corpus.add_generation(EMPTY, [images({"b.jpg": "1"})])
    assert any_corpus.add_generation(any_corpus.generation(), [images({"b.jpg": "1"})])
    assert live(any_corpus) == {"a.jpg": "1", "b.jpg": "1"}


def test_of_two_concurrent_writers_exactly_one_is_told_that_it_made_the_generation() -> None:
    """Tried in many orders in which each interrupts the other at most once."""
    for first, second in product(range(0, 40, 2), range(0, 40, 3)):
        with machine() as disk:
            made: dict[str, bool] = {}

            def add(uri: str, folder: str = str(disk.folder), made: dict[str, bool] = made) -> None:
                made[uri] = Corpus(LocalFiles(folder), "birds").add_generation(EMPTY, [images({uri: "1"})])

            disk.run([lambda add=add: add("a.jpg"), lambda add=add: add("b.jpg")], [(0, first), (1, second)])
            winners = [uri for uri, won in made.items() if won]
            assert [{uri: "1"} for uri in winners] == [live(Corpus(LocalFiles(str(disk.folder)), "birds"))]


# Damage


def test_reading_a_generation_with_a_missing_shard_is_an_error_with_a_remedy(any_corpus: Corpus) -> None:
    any_corpus.add_generation(EMPTY, [images({"a.jpg": "1"}), images({"b.jpg": "1"})])
    any_corpus.files.remove(any_corpus.images.path(any_corpus.generation().shard_names[0]))
    with pytest.raises(GsecError, match=r"corpus birds: its image list is damaged .* The next `gsec run` of its source writes it again"):
        any_corpus.live_rows(any_corpus.generation())


def test_an_older_generation_whose_list_is_damaged_does_not_promise_that_it_is_written_again(any_corpus: Corpus) -> None:
    any_corpus.add_generation(EMPTY, [images({"a.jpg": "1"})])
    any_corpus.add_generation(Generation(1, ()), [images({"a.jpg": "1"})])
    damage(any_corpus, any_corpus.generation(1).shard_names[0])
    with pytest.raises(GsecError, match=r"corpus birds: the image list of its generation 1 is damaged .* gsec run with --redo train"):
        any_corpus.live_rows(any_corpus.generation(1))
    assert live(any_corpus) == {"a.jpg": "1"}


def test_reading_a_generation_with_a_damaged_shard_is_an_error(any_corpus: Corpus) -> None:
    any_corpus.add_generation(EMPTY, [images({"a.jpg": "1"}), images({"b.jpg": "1"})])
    damage(any_corpus, any_corpus.generation().shard_names[1])
    with pytest.raises(GsecError, match="corpus birds: its image list is damaged"):
        any_corpus.live_rows(any_corpus.generation())


def test_a_shard_that_no_generation_lists_is_never_read(corpus: Corpus) -> None:
    corpus.add_generation(EMPTY, [images({"a.jpg": "1"})])
    corpus.images.commit("left by a killed writer", images({"b.jpg": "1"}))
    damage(corpus, "left by another")
    assert live(corpus) == {"a.jpg": "1"}


class Killed(BaseException):
    """Ends a writer as SIGKILL would."""


def without_generations(files: Files) -> Files:
    """Files of a writer that is killed when it is about to create a generation."""
    dying = copy.copy(files)

    def create(path: str, data: bytes) -> bool:
        if "/generations/" in path:
            raise Killed
        return files.create(path, data)

    dying.create = create  # type: ignore[method-assign]
    return dying


def test_a_writer_killed_before_it_creates_its_generation_changes_no_live_row(any_corpus: Corpus) -> None:
    any_corpus.add_generation(EMPTY, [images({"a.jpg": "1"})])
    with pytest.raises(Killed):
        Corpus(without_generations(any_corpus.files), "birds").add_generation(any_corpus.generation(), [images({"a.jpg": None, "b.jpg": "1"})])
    assert live(any_corpus) == {"a.jpg": "1"}


def test_a_rerun_of_a_killed_writer_reuses_its_shards(corpus: Corpus) -> None:
    rows = [images({"a.jpg": "1"}), images({"b.jpg": "1"})]
    with pytest.raises(Killed):
        Corpus(without_generations(corpus.files), "birds").add_generation(EMPTY, rows)
    left = corpus.images.names()
    assert corpus.add_generation(EMPTY, rows)
    assert corpus.images.names() == left == set(corpus.generation().shard_names)


class Growth(RuleBasedStateMachine):
    """Any sequence of events in the life of a corpus, checked against a dictionary per generation."""

    changes = st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e"]), st.none() | st.sampled_from(["1", "2"]), min_size=1)

    def __init__(self) -> None:
        super().__init__()
        self.corpus = Store.open(f"memory://{uuid4().hex}").corpus("birds")
        self.generations: list[Listing] = [{}]
        self.damaged: set[str] = set()

    def after(self, change: dict[str, str | None]) -> Listing:
        return {uri: version for uri, version in (self.generations[-1] | change).items() if version is not None}

    def write(self, base: Generation, change: dict[str, str | None], corpus: Corpus | None = None) -> bool:
        """Add a generation with two rows per shard."""
        items = list(change.items())
        return (corpus or self.corpus).add_generation(base, [images(dict(items[at : at + 2])) for at in range(0, len(items), 2)])

    @rule(change=changes)
    def the_source_changes(self, change: dict[str, str | None]) -> None:
        assert self.write(self.corpus.generation(), change)
        self.generations.append(self.after(change))

    @rule(first=changes, second=changes)
    def two_write_on_one_base(self, first: dict[str, str | None], second: dict[str, str | None]) -> None:
        base = self.corpus.generation()
        assert self.write(base, first)
        assert not self.write(base, second)
        self.generations.append(self.after(first))

    @rule(change=changes, age=st.integers(1, 3))
    def one_writes_on_an_old_base(self, change: dict[str, str | None], age: int) -> None:
        newest = self.corpus.generation().number
        if newest >= age:
            assert not self.write(self.corpus.generation(newest - age), change)

    @rule(change=changes)
    def a_writer_is_killed(self, change: dict[str, str | None]) -> None:
        with pytest.raises(Killed):
            self.write(self.corpus.generation(), change, Corpus(without_generations(self.corpus.files), "birds"))

    @precondition(lambda self: not self.damaged and len(self.generations) > 1)
    @rule(which=st.integers(0, 20))
    def a_shard_is_damaged_and_the_next_ingest_writes_its_images_again(self, which: int) -> None:
        base = self.corpus.generation()
        bad = base.shard_names[which % len(base.shards)]
        damage(self.corpus, bad)
        self.damaged.add(bad)
        with pytest.raises(GsecError, match="damaged"):
            self.corpus.live_rows(base)
        good = Generation(base.number, tuple(shard for shard in base.shards if shard.name != bad))
        known = live(self.corpus, good)
        listed = self.generations[-1]
        assert self.write(good, {uri: listed.get(uri) for uri in known | listed if known.get(uri) != listed.get(uri)})
        self.generations.append(listed)

    @invariant()
    def every_generation_reads_as_when_it_was_made(self) -> None:
        assert self.corpus.generation_numbers() == list(range(1, len(self.generations)))
        for number, listing in enumerate(self.generations):
            generation = self.corpus.generation(number)
            if self.damaged.isdisjoint(generation.shard_names):
                assert live(self.corpus, generation) == listing


def test_after_any_sequence_of_events_each_generation_reads_as_one_listing() -> None:
    run_state_machine_as_test(Growth, settings=reproducible(60, steps=8))


# Source


SOURCE = {"url": "s3://bucket/birds", "image_column": "image"}


def test_a_corpus_is_bound_to_its_first_source(any_corpus: Corpus) -> None:
    any_corpus.bind(SOURCE)
    any_corpus.bind(SOURCE)
    assert any_corpus.source() == SOURCE


@pytest.mark.parametrize("other", [{"url": "s3://bucket/fish", "image_column": "image"}, {"url": "s3://bucket/birds", "image_column": "photo"}])
def test_binding_a_corpus_to_another_source_is_refused(any_corpus: Corpus, other: dict[str, Any]) -> None:
    any_corpus.bind(SOURCE)
    with pytest.raises(Refused, match=rf"corpus birds belongs to s3://bucket/birds \(.*\), not to {other['url']} \(.*\)\. Choose another name with --corpus"):
        any_corpus.bind(other)
    assert any_corpus.source() == SOURCE


def test_a_source_is_checked_without_binding_it(corpus: Corpus) -> None:
    corpus.check_bound(SOURCE)
    corpus.bind(SOURCE | {"url": "s3://bucket/fish"})
    with pytest.raises(Refused, match="corpus birds belongs to s3://bucket/fish"):
        corpus.check_bound(SOURCE)


def test_a_missing_corpus_has_no_source(any_corpus: Corpus) -> None:
    with pytest.raises(FileNotFoundError):
        any_corpus.source()


# Redo


def test_a_new_corpus_has_no_redo_counters(any_corpus: Corpus) -> None:
    assert any_corpus.redo_counters() == {}


def test_each_stage_has_its_own_redo_counter(any_corpus: Corpus) -> None:
    assert [any_corpus.redo("encode"), any_corpus.redo("encode"), any_corpus.redo("two-words")] == [1, 2, 1]
    assert any_corpus.redo_counters() == {"encode": 2, "two-words": 1}


def test_redo_counters_go_on_beyond_nine(corpus: Corpus) -> None:
    assert [corpus.redo("encode") for _ in range(11)] == list(range(1, 12))


def test_a_named_request_that_is_repeated_raises_the_redo_counter_only_once(any_corpus: Corpus) -> None:
    assert [any_corpus.redo("encode", asker) for asker in ("one", "one", "other", None, "one", "other")] == [1, 1, 2, 3, 1, 2]
    assert any_corpus.redo("train", "one") == 1
    assert any_corpus.redo_counters() == {"encode": 3, "train": 1}


@pytest.mark.parametrize(("askers", "expected"), [((None, None), [1, 2]), (("one", "other"), [1, 2]), (("one", "one"), [1, 1])])
def test_two_concurrent_redos_get_different_counts_unless_they_are_the_same_request(askers: tuple[str | None, str | None], expected: list[int]) -> None:
    """Tried in every order in which each interrupts the other at most once."""
    for first, second in product(range(20), range(20)):
        with machine() as disk:
            counts: list[int] = []

            def redo(asker: str | None, folder: str = str(disk.folder), counts: list[int] = counts) -> None:
                counts.append(Corpus(LocalFiles(folder), "birds").redo("encode", asker))

            bodies: list[Callable[[], None]] = [partial(redo, asker) for asker in askers]
            disk.run(bodies, [(0, first), (1, second)])
            assert sorted(counts) == expected
