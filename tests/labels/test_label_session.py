"""Labelling sessions, the answers of raters, and the server without a browser."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from labelling import answer
from PIL import Image

from dnnlib.errors import UserError
from rods.labels.folders import Folder, read_folder
from rods.labels.label_set import label_set
from rods.labels.labels import labels_in, read_label_lines, settle
from rods.labels.server import make_app
from rods.labels.session import Answers, ConflictError, Order, Session, open_session

HANDS = label_set("hands")
Label = Callable[..., None]


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_shows_every_file_once_and_the_pairs_that_differ(session: Session) -> None:
    assert len(session.of_mode("image")) == 7, "the first image is the same file in both runs"
    assert sorted(item.name for item in session.of_mode("pair")) == [f"000000/{i:06d}.png" for i in (1, 2, 3)]


def test_order_and_sides_come_from_the_seed_and_say_nothing_of_the_run(folders: tuple[Folder, Folder]) -> None:
    once, again = (open_session(folders[:1], folders[1], labels=HANDS, seed=3) for _ in range(2))
    assert once == again
    first_of_pairs = {
        next(
            i for i in open_session(folders[:1], folders[1], labels=HANDS, seed=seed).of_mode("pair") if "3" in i.name
        ).sums[0]
        for seed in range(12)
    }
    assert first_of_pairs == {folder.sums["000000/000003.png"] for folder in folders}
    assert list(once.items) != list(open_session(folders[:1], folders[1], labels=HANDS, seed=4).items)


def test_images_can_be_asked_twice_and_in_an_order(folders: tuple[Folder, Folder]) -> None:
    sums = list(folders[0].sums.values())
    session = open_session(folders[:1], labels=HANDS, repeat=2, order=Order("score lid", sums[::-1]))
    items = session.of_mode("image")
    assert [item.sums[0] for item in items[:4]] == sums[::-1]
    assert [item.round for item in items] == [1, 1, 1, 1, 2, 2]
    assert len({*(item.images[0] for item in items)}) == 6, "nothing on the page tells that it is the same image"
    assert session.order == "score lid"


def test_folders_that_cannot_be_rated_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "other/x.png")
    with pytest.raises(UserError, match=r"--images=.*nowhere"):
        read_folder(tmp_path / "nowhere", option="--images")
    with pytest.raises(UserError, match=r"--images=.*empty"):
        read_folder(tmp_path / "empty", option="--images")
    first, other = (read_folder(path, option="--images") for path in (runs[0], tmp_path / "other"))
    with pytest.raises(UserError, match="shares no file name"):
        open_session([first], other, labels=HANDS)


def test_a_link_out_of_the_folder_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "secret.png")
    (runs[0] / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="leads out of"):
        read_folder(runs[0], option="--images")


# -- answers ----------------------------------------------------------------------------------------------------------


def test_the_same_answer_sent_twice_is_one(store: Answers, session: Session) -> None:
    key = session.of_mode("image")[0].key
    for _ in range(2):
        store.record("alice", answer(key, "normal", ident="00000001"))
    assert len(store.lines) == 1


def test_a_second_tab_that_did_not_see_the_answer_is_told(store: Answers, session: Session) -> None:
    key = session.of_mode("image")[0].key
    store.record("alice", answer(key, "normal", ident="00000001"))
    with pytest.raises(ConflictError):
        store.record("alice", answer(key, "extra fingers", ident="00000002"))
    store.record("alice", answer(key, "extra fingers", ident="00000003", seen=1))
    store.record("bob", answer(key, "normal", ident="00000004"))
    assert store.view("alice", "image")[0]["answer"] == "extra fingers"


def test_an_answer_can_be_taken_back_and_a_restart_finds_everything(store: Answers, session: Session) -> None:
    first, second = (item.key for item in session.of_mode("image")[:2])
    store.record("alice", answer(first, "normal", ident="00000001", note="a <b>note</b>"))
    store.record("alice", answer(second, "normal", ident="00000002"))
    store.record("alice", answer(second, None, ident="00000003", seen=1))
    again = Answers(store.path, session).view("alice", "image")
    assert again == store.view("alice", "image")
    assert (again[0]["answer"], again[0]["note"], again[1]["answer"], again[1]["seen"]) == (
        "normal",
        "a <b>note</b>",
        None,
        2,
    )


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """Of a zip from Windows that was unpacked on Linux."""
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"lat\xe9.png"))
    session = open_session([read_folder(tmp_path, option="--images")], labels=HANDS)
    (item,) = session.items
    Answers(tmp_path / "labels.jsonl", session).record("bob", answer(item, "normal", ident="00000001"))
    assert len(read_label_lines(tmp_path / "labels.jsonl")) == 1


def test_labels_go_with_the_image_into_other_sessions(
    store: Answers, runs: tuple[Path, Path], label_all: Label, tmp_path: Path
) -> None:
    """More seeds, another folder, another label set: what has an answer keeps it, and the file grows."""
    label_all(store, "alice", "A", ["normal", "extra fingers", "normal", "normal"])
    (tmp_path / "more").mkdir()
    (tmp_path / "more/renamed.png").write_bytes((runs[0] / "000000/000001.png").read_bytes())
    Image.new("L", (8, 8), 77).save(tmp_path / "more/new.png")
    later = open_session([read_folder(tmp_path / "more", option="--images")], labels=label_set("good,bad"), seed=5)
    again = Answers(store.path, later)
    rows = {later.items[row["item"]].name: row for row in again.view("alice", "image")}
    assert (rows["renamed.png"]["answer"], rows["new.png"]["answer"]) == ("extra fingers", None)
    again.record("alice", answer(rows["new.png"]["item"], "bad", ident="00000099"))
    labels = labels_in(read_label_lines(store.path))
    assert [label.label for label in labels] == ["valid", "hallucinated", "valid", "valid", "hallucinated"]
    assert labels[-1].answer == "bad"


def test_a_pair_keeps_its_meaning_where_the_sides_are_exchanged(folders: tuple[Folder, Folder], tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    for seed in range(12):
        session = open_session(folders[:1], folders[1], labels=HANDS, seed=seed)
        item = next(i for i in session.of_mode("pair") if "3" in i.name)
        store = Answers(path, session)
        second_is_left = item.sums[0] == folders[1].sums[item.name]
        better = "left better" if second_is_left else "right better"
        if seed == 0:
            store.record("alice", answer(item.key, better, ident="00000001"))
        row = next(row for row in store.view("alice", "pair") if row["item"] == item.key)
        assert row["answer"] == better


@pytest.mark.parametrize(
    "change",
    [
        {"item": "../../etc/passwd"},
        {"item": ["x"]},
        {"answer": "left better"},
        {"answer": 7},
        {"note": None},
        {"note": "x" * 2001},
        {"seen": "0"},
        {"id": "no id"},
    ],
)
def test_what_is_no_answer_is_refused(store: Answers, session: Session, change: dict[str, Any]) -> None:
    good = answer(session.of_mode("image")[0].key, "normal", ident="00000001")
    with pytest.raises(ValueError):
        store.record("alice", good | change)
    with pytest.raises(ValueError):
        store.record("Alice/..", good)
    assert store.lines == []


def test_the_consensus_sees_what_the_raters_disagree_on(store: Answers, label_all: Label) -> None:
    label_all(store, "alice", "A", ["normal", "normal", "extra fingers", "normal"])
    label_all(store, "bob", "A", ["normal", "abnormal palm", "extra fingers", "normal"])
    view = store.view("consensus", "image")
    assert [row["said"] for row in view] == [["normal", "abnormal palm"]]
    assert sorted(x.label for x in settle(labels_in(store.lines)).values()) == [
        "hallucinated",
        "uncertain",
        "valid",
        "valid",
    ]
    store.record("consensus", answer(view[0]["item"], "normal", ident="0000000a"))
    assert sorted(x.label for x in settle(labels_in(store.lines)).values()) == [
        "hallucinated",
        "valid",
        "valid",
        "valid",
    ]


# -- server -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(store: Answers) -> Any:
    pytest.importorskip("flask", reason="flask is not installed")
    return make_app(store, token="secret").test_client()


def test_the_server_shows_and_records(client: Any, session: Session, store: Answers) -> None:
    assert client.get("/secret/").status_code == 200
    assert '"grid"' in client.get("/secret/").text
    assert '"valid": "normal"' in client.get("/secret/rate/alice/grid").text
    page = client.get("/secret/rate/alice/pair")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    rows = client.get("/secret/items/alice/image").get_json()
    assert client.get(f"/secret/image/{rows[0]['images'][0]}").data[:4] == b"\x89PNG"
    good = answer(rows[0]["item"], "normal", ident="00000001", note="</script><b>")
    assert client.post("/secret/items/alice/image", json=good).status_code == 200
    assert client.post("/secret/items/alice/image", json=good | {"id": "00000002"}).status_code == 409
    assert client.post("/secret/items/alice/image", json=good | {"answer": "?"}).status_code == 400
    assert client.post("/secret/items/alice/image", data="[", content_type="application/json").status_code == 400
    assert len(store.lines) == 1


def test_nothing_of_the_page_tells_the_runs_apart(client: Any) -> None:
    text = client.get("/secret/rate/alice/pair").text + client.get("/secret/items/alice/pair").text
    assert "000000" not in text
    assert '"A"' not in text


@pytest.mark.parametrize(
    "address",
    ["/", "/secre/", "/secret/image/x", "/secret/image/../../etc/passwd", "/secret/image/%2e%2e%2f000000%2f000001.png",
     "/secret/rate/Alice/image", "/secret/rate/alice/other", "/secret/items/alice/grid",
     "/secret/static/x"],
)  # fmt: skip
def test_other_addresses_lead_nowhere(client: Any, address: str) -> None:
    assert client.get(address).status_code == 404


def test_another_name_of_this_machine_is_refused(client: Any) -> None:
    assert client.get("/secret/", headers={"Host": "rebound.example:80"}).status_code == 403
