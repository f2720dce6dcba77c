"""The store without root: what it lists and finds, damaged records, locks, and the values that it hands out."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import NetboxError, NoPermission, NotFound, StateError, UsageError
from netbox.image.locks import Workspace
from netbox.image.model import Image, Record
from netbox.image.store import ImageStore
from netbox.settings import Settings

TEXT = st.text(max_size=20)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "netbox"


@pytest.fixture
def store(root: Path) -> ImageStore:
    return ImageStore(Settings(root=str(root)))


def put(root: Path, name: str, identity: str, **changes: object) -> Path:
    """An image as the store leaves it on disk; returns its layer."""
    layer = root / "images/layers" / identity
    layer.mkdir(parents=True)
    (layer / "file").write_text(identity)
    image = Image(name, identity, 1.0, 5, "/src", (str(layer),))
    names = root / "images/names"
    names.mkdir(exist_ok=True)
    (names / f"{name}.json").write_bytes(json.dumps({**json.loads(Record(image).dump()), **changes}).encode())
    return layer


@given(
    command=st.lists(TEXT, max_size=3).map(tuple),
    environment=st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple),
    source=TEXT,
    layers=st.lists(st.text("0123456789abcdef", min_size=16, max_size=16), min_size=1, max_size=4).map(tuple),
    made_from=st.none() | st.dictionaries(TEXT, st.integers() | TEXT, max_size=3),
)
def test_a_record_survives_the_disk(
    command: tuple[str, ...],
    environment: tuple[tuple[str, str], ...],
    source: str,
    layers: tuple[str, ...],
    made_from: dict[str, int | str] | None,
) -> None:
    image = Image("web", "f" * 16, 1.5, 7, source, tuple(f"/store/{layer}" for layer in layers), command, environment, "/srv", "33:33")
    record = Record(image, made_from)
    assert Record.load(record.dump(), "web.json", "/store") == record


def test_an_image_as_json_holds_plain_values(store: ImageStore) -> None:
    image = Image("web", "f" * 16, 1.5, 7, "/src", ("/a", "/b"), ("sh",), (("K", "V"),))
    document = image.to_json()
    assert document["environment"] == ["K=V"]
    assert document["layers"] == ["/a", "/b"]
    assert json.loads(json.dumps(document)) == document


def test_host_is_always_there_and_makes_nothing(store: ImageStore, root: Path) -> None:
    image = store.get("host")
    assert (image.layers, image.host, image.command) == (("/",), True, ("/bin/bash",) if os.path.exists("/bin/bash") else ("/bin/sh",))
    assert store.list() == [image]
    assert store.gc(()) == []
    assert not root.exists()


def test_images_are_listed_by_name_after_host(store: ImageStore, root: Path) -> None:
    for number, name in enumerate(("zeta", "alpha")):
        put(root, name, str(number) * 16)
    assert [image.name for image in store.list()] == ["host", "alpha", "zeta"]


def test_an_image_is_found_by_name_and_by_the_beginning_of_its_id(store: ImageStore, root: Path) -> None:
    layer = put(root, "web", "abcdef0123456789")
    assert store.get("web") == store.get("abcdef012345") == store.find("abc")
    assert store.get("web").layers == (str(layer),)


def test_a_name_goes_before_an_id(store: ImageStore, root: Path) -> None:
    put(root, "abc", "1" * 16)
    put(root, "web", "abcdef0123456789")
    assert store.get("abc").name == "abc"


def test_an_ambiguous_id_names_the_images(store: ImageStore, root: Path) -> None:
    put(root, "one", "abc" + "1" * 13)
    put(root, "two", "abc" + "2" * 13)
    with pytest.raises(UsageError, match="one, two"):
        store.get("abc")


@pytest.mark.parametrize("reference", ["nope", "", "../names/web", "a/b", "x" * 300, "web.json", "hos", "\n", "\0"])
def test_an_unknown_image_names_those_there_are(reference: str, store: ImageStore, root: Path) -> None:
    put(root, "web", "1" * 16)
    with pytest.raises(NotFound, match="busybox, host, web"):
        store.get(reference)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"format": 1}', b'{"format": "x"}', b"\xff", b"null"])
def test_a_damaged_record_is_named_and_stops_the_collection(text: bytes, store: ImageStore, root: Path) -> None:
    layer = put(root, "web", "1" * 16)
    record = root / "images/names/web.json"
    record.write_bytes(text)
    for call in (lambda: store.get("web"), store.list, lambda: store.gc(())):
        with pytest.raises(StateError, match=r"web\.json is damaged"):
            call()
    assert layer.is_dir()


def test_a_record_of_a_newer_version_is_not_touched(store: ImageStore, root: Path) -> None:
    put(root, "web", "1" * 16, format=99)
    with pytest.raises(StateError, match="newer netbox"):
        store.get("web")


def test_removal_takes_name_and_files(store: ImageStore, root: Path) -> None:
    layer = put(root, "web", "1" * 16)
    assert store.remove("web").name == "web"
    assert not layer.exists()
    assert [image.name for image in store.list()] == ["host"]


def test_removal_leaves_what_others_use(store: ImageStore, root: Path) -> None:
    used, unrelated = put(root, "web", "1" * 16), root / "images/layers/unrelated"
    unrelated.mkdir()
    store.remove("web", {str(used)})
    assert (used / "file").read_text() == "1" * 16
    assert unrelated.is_dir()
    assert store.gc(()) == [f"image layer {used}", f"image layer {unrelated}"]
    assert not used.exists()


def test_two_images_may_share_a_layer(store: ImageStore, root: Path) -> None:
    layer = put(root, "one", "1" * 16)
    (root / "images/names/two.json").write_bytes((root / "images/names/one.json").read_bytes().replace(b'"one"', b'"two"'))
    store.remove("one")
    assert layer.is_dir()
    store.remove("two")
    assert not layer.exists()


@pytest.mark.parametrize("name", ["host", "nope", "../x"])
def test_what_cannot_be_removed(name: str, store: ImageStore) -> None:
    with pytest.raises(UsageError if name == "host" else NotFound):
        store.remove(name)


def test_gc_leaves_what_an_image_or_a_sandbox_holds(store: ImageStore, root: Path) -> None:
    named, used = put(root, "web", "1" * 16), root / "images/layers/used"
    used.mkdir()
    assert store.gc({str(used)}) == []
    assert named.is_dir()
    assert used.is_dir()


def test_gc_takes_half_made_images_whose_maker_died(store: ImageStore, root: Path) -> None:
    (root / "images").mkdir(parents=True)
    without_lock, dead = root / "images/.incoming-a", root / "images/.incoming-b"
    for path in (without_lock, dead):
        (path / "root/etc").mkdir(parents=True)
        (path / "root/etc/passwd").touch()
        os.symlink("/", path / "root/link")
    (dead / "lock").touch()
    with Workspace.create(str(root / "images")) as alive:
        assert store.gc(()) == [f"half-made image {without_lock}", f"half-made image {dead}"]
        assert Path(alive.path).is_dir()
    assert sorted(path.name for path in (root / "images").iterdir()) == [".lock"]


def test_the_store_is_closed_to_other_users(store: ImageStore, root: Path) -> None:
    with store.reading():
        assert stat.S_IMODE((root / "images").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("name", "path"),
    [("../x", "/etc"), ("", "/etc"), ("a/b", "/etc"), ("x" * 65, "/etc"), ("host", "/etc"), ("x", "/nonexistent"), ("x", "/dev/null")],
)
def test_nonsense_is_refused_before_anything_is_made(
    name: str, path: str, store: ImageStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UsageError):
        store.import_path(name, path)
    assert not root.exists()


def test_importing_needs_root(store: ImageStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoPermission, match="root"):
        store.import_path("x", "/etc")
    assert not root.exists()


def test_a_place_where_no_store_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = ImageStore(Settings(root=str(tmp_path / "file")))
    with pytest.raises(NetboxError, match="Not a directory"), store.reading():
        pass
    assert [image.name for image in store.list()] == ["host"]


def in_thread(action: object) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_several_may_read_at_once(store: ImageStore) -> None:
    entered = threading.Event()

    def read() -> None:
        with store.reading():
            entered.set()

    with store.reading(), store.reading():
        thread = in_thread(read)
        assert entered.wait(60)
    thread.join(60)


def test_changing_waits_for_readers_and_may_be_nested(store: ImageStore, root: Path) -> None:
    put(root, "web", "1" * 16)
    order: list[str] = []

    def change() -> None:
        with store.changing(), store.changing():
            order.append("changed")
            store.remove("web")
            store.gc(())

    with store.reading():
        thread = in_thread(change)
        time.sleep(0.1)
        order.append("read")
    thread.join(60)
    assert order == ["read", "changed"]


def test_changing_inside_reading_would_wait_for_itself(store: ImageStore) -> None:
    with store.reading(), pytest.raises(RuntimeError, match="shared"), store.changing():
        pass
    with store.changing(), store.reading():
        pass
