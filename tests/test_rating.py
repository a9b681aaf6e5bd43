"""Labelling: sessions, the answers file, agreement and report, and the server without a browser."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dnnlib.errors import UserError
from rods.eval.detection import Confusion
from rods.labels.agreement import agreements, cohen_kappa, flagged, hallucination_rate, outcomes, settle, verdicts
from rods.labels.server import make_app
from rods.labels.session import Answers, ConflictError, Session, open_session, read_answers
from scripts import label


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of four images; the first image is the same in both."""
    for run, value in (("A", 10), ("B", 20)):
        (tmp_path / run / "000000").mkdir(parents=True)
        for i in range(4):
            level = 50 if i == 0 else value + i
            Image.fromarray(np.full((8, 8), level, np.uint8)).save(tmp_path / run / f"000000/{i:06d}.png")
    return tmp_path / "A", tmp_path / "B"


@pytest.fixture
def session(runs: tuple[Path, Path]) -> Session:
    return open_session(*runs, kind="hands", seed=0)


@pytest.fixture
def store(session: Session, tmp_path: Path) -> Answers:
    return Answers(tmp_path / "answers.jsonl", session)


def answer(key: str, what: str | None, *, ident: str, seen: int = 0, note: str = "") -> dict[str, Any]:
    return {"item": key, "answer": what, "note": note, "seen": seen, "id": ident}


def label_all(store: Answers, rater: str, run: str, labels: list[str]) -> None:
    items = sorted((i for i in store.session.of_mode("image") if i.runs == (run,)), key=lambda item: item.name)
    for n, (item, what) in enumerate(zip(items, labels, strict=True)):
        store.record(rater, answer(item.key, what, ident=f"{ord(run):04x}{ord(rater[0]):04x}{n:04x}"))


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_shows_every_image_and_the_pairs_that_differ(session: Session) -> None:
    assert len(session.of_mode("image")) == 8
    assert sorted(item.name for item in session.of_mode("pair")) == [f"000000/{i:06d}.png" for i in (1, 2, 3)]


def test_order_and_sides_come_from_the_seed_and_say_nothing_of_the_run(runs: tuple[Path, Path]) -> None:
    once, again = (open_session(*runs, kind="hands", seed=3) for _ in range(2))
    assert once == again
    sides = {open_session(*runs, kind="hands", seed=seed).of_mode("pair")[0].runs for seed in range(12)}
    assert sides == {("A", "B"), ("B", "A")}
    assert list(once.items) != list(open_session(*runs, kind="hands", seed=4).items)


def test_folders_that_cannot_be_rated_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "other/x.png")
    with pytest.raises(UserError, match=r"--images=.*nowhere"):
        open_session(tmp_path / "nowhere", None, kind="hands", seed=0)
    with pytest.raises(UserError, match=r"--images=.*empty"):
        open_session(tmp_path / "empty", None, kind="hands", seed=0)
    with pytest.raises(UserError, match="shares no file name"):
        open_session(runs[0], tmp_path / "other", kind="hands", seed=0)


def test_a_link_out_of_the_folder_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "secret.png")
    (runs[0] / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="leads out of"):
        open_session(*runs, kind="hands", seed=0)


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


IDENTITY = {"schema": 1, "kind": "hands", "seed": 0, "images": "0", "against": None}
LINES: list[dict[str, Any]] = [{"session": IDENTITY}]
LINES += [{"id": f"{i:08x}", "rater": "bob", "item": f"{i}", "answer": "normal", "note": "é"} for i in range(5)]


@given(cut=st.integers(0, 600))
def test_a_kill_while_writing_loses_at_most_the_line_that_was_not_acknowledged(cut: int) -> None:
    """Reading changes nothing; a server brings the file to its last whole line, and one that lacks its newline is."""
    content = b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in LINES)[:cut]
    last = content.rpartition(b"\n")[2]
    whole = content.count(b"\n") + any(last == json.dumps(line, ensure_ascii=False).encode() for line in LINES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.jsonl"
        path.write_bytes(content)
        found = read_answers(path, IDENTITY)
        assert path.read_bytes() == content
        assert found in (LINES[1:whole], [])
        assert Answers(path, Session(IDENTITY, {}, {})).lines == found
        assert read_answers(path, IDENTITY) == found
        assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    "content",
    [b'{"labels": [["a.png", 1]]}', b"one line of notes", b'{"a": 1}\n', b"\xff\xfe\x00", b"\n", b'{"session": 3}\n',
     b'{"session": {}}\n', b'{"session": {"kind": "hands", "seed": 0, "images": ""}}\n[1]\n'],
)  # fmt: skip
def test_a_file_that_is_not_ours_is_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    for touch in (lambda: Answers(path, Session(IDENTITY, {}, {})), lambda: read_answers(path)):
        with pytest.raises(UserError, match="is not an answers file; name another --answers"):
            touch()
    assert path.read_bytes() == content


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """Of a zip from Windows that was unpacked on Linux."""
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"lat\xe9.png"))
    session = open_session(tmp_path, None, kind="hands", seed=0)
    (item,) = session.items
    Answers(tmp_path / "answers.jsonl", session).record("bob", answer(item, "normal", ident="00000001"))
    assert len(read_answers(tmp_path / "answers.jsonl", session.identity)) == 1


def test_answers_of_other_pictures_are_refused(store: Answers, runs: tuple[Path, Path], session: Session) -> None:
    Image.new("L", (8, 8)).save(runs[0] / "000000/000001.png")
    with pytest.raises(UserError, match="answers to another images"):
        Answers(store.path, open_session(*runs, kind="hands", seed=0))
    store.path.write_text("what is this\n")
    with pytest.raises(UserError, match="not an answers file"):
        Answers(store.path, session)


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


def test_the_consensus_sees_what_the_raters_disagree_on(store: Answers) -> None:
    label_all(store, "alice", "A", ["normal", "normal", "extra fingers", "normal"])
    label_all(store, "bob", "A", ["normal", "abnormal palm", "extra fingers", "normal"])
    view = store.view("consensus", "image")
    assert [row["said"] for row in view] == [["normal", "abnormal palm"]]
    assert settle(store.lines, "image").disputed == 1
    store.record("consensus", answer(view[0]["item"], "normal", ident="0000000a"))
    settled = settle(store.lines, "image")
    assert (settled.disputed, len(settled.answers)) == (0, 4)


# -- report -----------------------------------------------------------------------------------------------------------


def test_kappa_of_the_textbook() -> None:
    """20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: p_o = .7, p_e = .5, kappa = .4."""
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    found = cohen_kappa(first, second, categories=["y", "n"])
    assert found.table == ((20, 5), (10, 15))
    assert found.observed == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)
    assert cohen_kappa(first, first, categories=["y", "n"]).kappa == 1
    assert math.isnan(cohen_kappa(["y"], ["y"], categories=["y", "n"]).kappa)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2))
def test_kappa_is_symmetric_and_at_most_one(pairs: list[tuple[str, str]]) -> None:
    first, second = zip(*pairs, strict=True)
    there, back = cohen_kappa(first, second, categories="abc"), cohen_kappa(second, first, categories="abc")
    assert there.kappa == pytest.approx(back.kappa, nan_ok=True)
    assert math.isnan(there.kappa) or there.kappa <= 1 + 1e-12


def test_rates_outcomes_verdicts_and_confusion(store: Answers, session: Session) -> None:
    label_all(store, "alice", "A", ["normal", "extra fingers", "missing fingers", "normal"])
    label_all(store, "alice", "B", ["normal", "normal", "missing fingers", "abnormal palm"])
    settled = settle(store.lines, "image")
    assert [hallucination_rate(settled, run).k for run in "AB"] == [2, 2]
    paired = outcomes(settled)
    assert (paired.repaired.k, paired.repaired.n, paired.broken.k, paired.broken.n) == (1, 2, 1, 2)
    H = {f"000000/{i:06d}.png": float(i) for i in range(4)}
    assert flagged(settled, H, run="A", eps=2.0) == Confusion(tp=1, fp=1, fn=1, tn=1)
    with pytest.raises(ValueError, match="no H"):
        flagged(settled, {}, run="A", eps=2.0)
    for n, item in enumerate(session.of_mode("pair")):  # B is always better, whichever side it is on
        said = "left better" if item.runs[0] == "B" else "right better"
        store.record("alice", answer(item.key, said, ident=f"000000{n:02x}"))
    assert verdicts(settle(store.lines, "pair"))[0] == {"better": 3, "worse": 0, "same": 0, "unclear": 0}
    assert agreements(store.lines, "image", "hands") == {}


def test_the_report_command(store: Answers, tmp_path: Path) -> None:
    label_all(store, "alice", "A", ["normal", "extra fingers", "normal", "normal"])
    label_all(store, "bob", "A", ["normal", "extra fingers", "normal", "normal"])
    samples = tmp_path / "samples.jsonl"
    names = [f"000000/{i:06d}.png" for i in range(4)]
    samples.write_text("".join(json.dumps({"name": n, "H": [0.1, i]}) + "\n" for i, n in enumerate(names)))
    options = [f"--answers={store.path}", f"--samples={samples}", "--eps=1"]
    shown = CliRunner().invoke(label.main, ["report", *options])
    assert shown.exit_code == 0
    assert "n = 4, same answer 100.0%, Cohen's kappa 1.000" in shown.output
    assert "hallucinated, run A: 1 of 4 = 25.0%" in shown.output
    assert "tp 1, fp 2, fn 0, tn 1" in shown.output
    assert "belong together" in CliRunner().invoke(label.main, ["report", *options[:2]]).output


# -- server -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(store: Answers) -> Any:
    pytest.importorskip("flask", reason="flask is not installed")
    return make_app(store, token="secret").test_client()


def test_the_server_shows_and_records(client: Any, session: Session, store: Answers) -> None:
    assert client.get("/secret/").status_code == 200
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
     "/secret/rate/Alice/image", "/secret/rate/alice/other", "/secret/static/x"],
)  # fmt: skip
def test_other_addresses_lead_nowhere(client: Any, address: str) -> None:
    assert client.get(address).status_code == 404


def test_another_name_of_this_machine_is_refused(client: Any) -> None:
    assert client.get("/secret/", headers={"Host": "rebound.example:80"}).status_code == 403
