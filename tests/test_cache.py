"""The cache against a slow twin, two processes at once, and processes that die."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.records.cache import GB, Cache, address

KEYS = ("a", "b", "c", "d", "e")


def put(cache: Cache, key: str, size: int) -> None:
    """An entry of two files, ``size`` bytes in all, filled with its key."""
    with cache.create(key) as folder:
        (folder / "inner").mkdir()
        for path, count in ((folder / "one", size // 2), (folder / "inner/two", size - size // 2)):
            path.write_bytes(key.encode() * count)


def kept(cache: Cache) -> set[str]:
    return {path.name for path in cache.folder.iterdir() if path.name[0] != "."}


def leftovers(cache: Cache) -> list[str]:
    return [name for name in os.listdir(cache.folder) if name.startswith(".part")]


class Twin:
    """What the cache promises, literally: a list of entries, the most recently used last."""

    def __init__(self, limit: int) -> None:
        self.limit, self.sizes, self.held = limit, {}, set()

    def find(self, key: str) -> bool:
        if key in self.sizes:
            self.sizes[key] = self.sizes.pop(key)  # to the end
            self.held.add(key)
        return key in self.sizes

    def create(self, key: str, size: int) -> None:
        if key not in self.held:
            self.sizes.pop(key, None)
            self.sizes[key] = size
        for other in list(self.sizes):
            if sum(self.sizes.values()) > self.limit and other != key and other not in self.held:
                del self.sizes[other]


SIZES = st.sampled_from([0, 1, 10, 20, 60])
OPERATIONS = st.one_of(
    st.tuples(st.just("create"), st.sampled_from(KEYS), SIZES),
    st.tuples(st.just("find"), st.sampled_from(KEYS), st.just(0)),
    st.tuples(st.just("remove"), st.sampled_from(KEYS), st.just(0)),
    st.tuples(st.just("close"), st.just(""), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(limit=st.sampled_from([0, 10, 40, 60, 121]), operations=st.lists(OPERATIONS, max_size=25))
def test_it_keeps_what_its_twin_keeps(limit: int, operations: list[tuple[str, str, int]]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Cache(Path(folder), limit / GB)) as cache,
    ):
        twin = Twin(cache.max_bytes or 0)
        for name, key, size in operations:
            if name == "create":
                put(cache, key, size)
                twin.create(key, size)
            elif name == "find":
                assert (cache.find(key) is not None) == twin.find(key)
            elif name == "remove":
                gone = key not in twin.held
                assert cache.remove(key) == gone
                if gone:
                    twin.sizes.pop(key, None)
            else:
                cache.close()
                twin.held.clear()
            assert kept(cache) == set(twin.sizes)
            assert cache.size() == sum(twin.sizes.values())
            assert leftovers(cache) == []


def test_the_newest_entry_stays_even_where_it_alone_is_too_large(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10 / GB)
    put(cache, "a", 5)
    put(cache, "b", 50)
    assert kept(cache) == {"b"}


def test_without_a_limit_everything_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for key in KEYS:
        put(cache, key, 1000)
    assert kept(cache) == set(KEYS)


def test_an_error_while_making_an_entry_leaves_no_trace(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(OSError, match="full"), cache.create("a") as folder:
        (folder / "one").write_text("half")
        raise OSError("disk full")
    assert cache.find("a") is None
    assert leftovers(cache) == []


def test_a_new_entry_replaces_the_old_unless_somebody_reads_that(tmp_path: Path) -> None:
    ours, theirs = Cache(tmp_path), Cache(tmp_path)
    put(ours, "a", 10)
    put(ours, "a", 20)
    assert ours.size() == 20
    with closing(theirs):
        assert theirs.find("a")
        put(ours, "a", 30)
        assert ours.size() == 20
    put(ours, "a", 30)
    assert ours.size() == 30
    assert leftovers(ours) == []


@pytest.mark.parametrize("key", ["", ".", "..", "../x", "x/y", ".hidden", "x y", "é"])
def test_keys_that_lead_elsewhere_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="cache key"):
        Cache(tmp_path / "cache").find(key)


def test_an_address_depends_on_content_and_not_on_its_order() -> None:
    one = address("states", model="m", windows=3)
    assert one == address("states", windows=3, model="m")
    assert one.startswith("states-")
    others = (address("other", model="m", windows=3), address("states", model="m", windows=4))
    assert len({one, *others}) == 3


def _work(folder: str, seed: int) -> None:
    """Makes and reads entries; what is read must be whole, also a while later."""
    draw = random.Random(seed)
    for _ in range(60):
        key = draw.choice(KEYS)
        with closing(Cache(Path(folder), 3000 / GB)) as cache:
            found = cache.find(key)
            if not found:
                put(cache, key, 1000)
                continue
            for path in (found / "one", found / "inner/two"):
                time.sleep(draw.random() / 500)
                assert path.read_bytes() == key.encode() * 500


def test_two_processes_never_see_half_an_entry_or_lose_one_in_use(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(str(tmp_path), seed)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    cache = Cache(tmp_path, 3000 / GB)
    put(cache, "last", 10)
    assert cache.size() <= 3000
    assert leftovers(cache) == []


def _stall(folder: str, ready: str) -> None:
    with closing(Cache(Path(folder))) as cache, cache.create("b") as part:
        cache.find("a")
        (part / "one").write_text("half")
        Path(ready).touch()
        time.sleep(60)


def test_a_killed_maker_holds_nothing_and_what_it_left_is_tidied_up(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 100 / GB)
    put(cache, "a", 60)
    ready = tmp_path / "ready"
    process = multiprocessing.get_context("spawn").Process(
        target=_stall, args=(str(cache.folder), str(ready))
    )
    process.start()
    while not ready.exists():
        time.sleep(0.01)
    put(cache, "c", 60)
    assert kept(cache) == {"a", "c"}, "a is in use"
    assert len(leftovers(cache)) == 1, "an entry in the making is left alone"
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    put(cache, "d", 60)
    assert kept(cache) == {"d"}
    assert leftovers(cache) == []
