"""Where a model comes from: whatever names one becomes a plain folder, converted once into the cache."""

from __future__ import annotations

import difflib
import hashlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from calque import assets
from calque.disk import cache_root, checksum, locked, new_folder, read_json, sha256
from calque.errors import ConfigError, ModelError
from calque.model.files import BESIDE, DELTA, INDEX, WEIGHTS
from calque.progress import say

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.jinja", "LICENSE*", "README.md"]
_UNWANTED = ["*/*.safetensors", "consolidated*.safetensors", "onnx/*", "openvino/*", "original/*"]


def resolve_model(ref: str | Path) -> Path:
    """The plain folder of a model.

    Args:
        ref: a folder, a `.gguf` file, a PEFT adapter folder (folded into its base), an asset name, a hub id,
            a delta's folder (put beside its base), MODEL+DELTA.

    Raises:
        ConfigError: nothing known has this name.
        ModelError: it exists, but can not be had or used.
    """
    path = Path(ref).expanduser()
    if path.is_dir():
        if (path / DELTA).is_file():
            return with_delta(path)
        return folded_adapter(path) if _is_adapter(path) else path
    if path.is_file():
        return _from_file(path)
    kinds = {asset.name: asset.kind for asset in assets.list_assets()}
    if str(ref) in kinds:
        if kinds[str(ref)] == "text":
            raise ConfigError(f"asset '{ref}' is a text, not a model; see `calque assets list`")
        return assets.get(str(ref))
    model, plus, delta = str(ref).rpartition("+")
    if plus and (Path(delta).expanduser() / DELTA).is_file():
        return with_delta(Path(delta).expanduser(), resolve_model(model))
    if _HUB_ID.fullmatch(str(ref)):
        return _from_hub(str(ref))
    raise ConfigError(
        f"no model '{ref}': neither a folder, a .gguf file, an asset nor a hub id{_near(path, kinds)}"
    )


def _is_adapter(folder: Path) -> bool:
    own = (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()
    return (folder / "adapter_config.json").is_file() and not own


def _from_file(file: Path) -> Path:
    if file.suffix.lower() != ".gguf":
        raise ModelError(
            f"{file}: a model is a folder with config.json and {WEIGHTS}, or a .gguf file; "
            f"give the folder {file.parent} if this file belongs to one"
        )
    from calque.model.gguf import convert_gguf

    say(f"{file.name}: reading for its checksum")
    target = _cached(f"gguf-{sha256(file)[:16]}")
    with locked(target.with_suffix(".lock")):
        if not target.is_dir():
            with new_folder(target) as part:
                convert_gguf(file, part)
    return target


def _from_hub(ref: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(ref, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except GatedRepoError:
        raise ModelError(
            f"the hub asks for a login and consent before '{ref}': accept on its page, then `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ConfigError(f"no model '{ref}': not a local path, not an asset, and the hub has none") from None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"'{ref}' is no local path or asset, and the hub could not be reached ({_first_line(error)}); "
            "check the spelling or the network, or download it elsewhere and give its folder"
        ) from None


def _near(path: Path, names: Iterable[str]) -> str:
    """A did-you-mean over asset names and the neighbours of a path that does not exist."""
    near = difflib.get_close_matches(str(path), list(names), 2, 0.5)
    if path.parent.is_dir():
        beside = [entry.name for entry in path.parent.iterdir()]
        near += [str(path.parent / name) for name in difflib.get_close_matches(path.name, beside, 2, 0.6)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def folded_adapter(adapter: Path, base: Path | None = None) -> Path:
    """The plain folder of a PEFT adapter folded into its base: W + scale * B A in float32, rounded once.

    Without `base` into the one that its configuration names.
    """
    from calque.model.adapter import fold, read_base

    base = base or resolve_model(read_base(adapter))
    target = _cached(f"folded-{_stamp(adapter, base)}")
    with locked(target.with_suffix(".lock")):
        if not target.is_dir():
            say(f"{adapter}: folding into {base}")
            with new_folder(target) as part:
                fold(adapter, base, part)
    return target


def with_delta(delta: Path, base: Path | None = None) -> Path:
    """A folder of links to the base's files with the delta beside them, which both together are the model.

    Without `base` that of the model it was made for.

    Raises:
        ConfigError: the base has another delta beside it already.
    """
    base = base or resolve_model(read_json(delta / DELTA)["base"]["folder"])
    held = base / BESIDE / DELTA
    if held.is_file() and not read_json(held).get("folded"):
        raise ConfigError(f"{base} has a delta beside it that is not folded in; give its own base")
    stamp = hashlib.sha256(f"{_stamp(delta, base)} {checksum(delta)}".encode()).hexdigest()[:16]
    target = _cached(f"with-delta-{stamp}")
    with locked(target.with_suffix(".lock")):
        if not target.is_dir():
            with new_folder(target) as part:
                for entry in base.iterdir():
                    if entry.name != BESIDE:
                        (part / entry.name).symlink_to(entry.resolve())
                shutil.copytree(delta, part / BESIDE)
    return target


def _stamp(adapter: Path, base: Path) -> str:
    """Changes when the adapter's bytes change, or any file of its base by name, size or time."""
    digest = hashlib.sha256(str(base.resolve()).encode())
    for file in sorted(adapter.glob("*.*")):
        if file.is_file():
            digest.update(f"{file.name}\0{sha256(file)}\n".encode())
    for file in sorted(base.glob("*.*")):
        digest.update(f"{file.name}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _cached(name: str) -> Path:
    return cache_root() / "models" / name


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
