"""Downloads from a real server on this machine: cut, changed, refused, wrong, hostile."""

import errno
import gzip
import hashlib
import json
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import zipfile

import pytest
from file_server import Served, file_server

from idgenrec_jax.data import http_file
from idgenrec_jax.data.download import Download, RemoteFile, fetch, read_record
from idgenrec_jax.data.publishers import DOWNLOADS
from idgenrec_jax.errors import InputError

BODY = gzip.compress(random.Random(0).randbytes(300_000), mtime=0)
OTHER = gzip.compress(random.Random(1).randbytes(310_000), mtime=0)
NAME = "reviews.json.gz"
MEMBERS = ("ml/ratings.csv", "ml/movies.csv")
WAITS = (0.001, 0.001)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with file_server() as files:
        files.files[f"/{NAME}"] = Served(BODY)
        yield files


def download(server, name=NAME, **more):
    file = RemoteFile(f"{server.address}/{name}", name, **more)
    return Download("reviews", "amazon", (file,), "https://publisher.example/page", "none")


def md5(body):
    return hashlib.md5(body).hexdigest()


def fetched(server, folder, waits=WAITS, **more):
    """The contents of the one file of a download, fetched now."""
    [path] = fetch(download(server, **more), folder, waits=waits)
    assert path == folder / more.get("name", NAME)
    return path.read_bytes()


def fault(server, folder, waits=WAITS, **more):
    """The message of a download that fails: one line."""
    with pytest.raises(InputError) as caught:
        fetch(download(server, **more), folder, waits=waits)
    assert "\n" not in str(caught.value) and "or or" not in str(caught.value) and "; or" not in str(caught.value)
    return str(caught.value)


def test_a_whole_file_is_recorded_and_compared_but_not_fetched_again(server, tmp_path):
    assert fetched(server, tmp_path / "raw", md5=md5(BODY)) == BODY
    record = read_record(tmp_path / "raw")[NAME]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record.pop("fetched"))
    assert record == {
        "address": f"{server.address}/{NAME}",
        "bytes": len(BODY),
        "sha256": hashlib.sha256(BODY).hexdigest(),
        "compared_with": f"MD5 {md5(BODY)}",
        "etag": '"one"',
        "last_modified": None,
    }
    assert fetched(server, tmp_path / "raw", md5=md5(BODY)) == BODY
    assert server.log == [(f"/{NAME}", 0, len(BODY))]
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == [".download.lock", "download.json", NAME]


def test_without_a_checksum_the_sum_is_told_and_that_nothing_was_compared(server, tmp_path, caplog):
    fetched(server, tmp_path)
    assert hashlib.sha256(BODY).hexdigest() in caplog.text and "compared with nothing" in caplog.text
    assert read_record(tmp_path)[NAME]["compared_with"] is None


def test_a_cut_connection_is_continued_and_no_byte_is_sent_twice(server, tmp_path, capsys):
    server.files[f"/{NAME}"].cuts = [100_000, 0, 50_000]
    assert fetched(server, tmp_path, md5=md5(BODY)) == BODY
    assert [entry[1:] for entry in server.log] == [
        (0, 100_000),
        (100_000, 0),
        (100_000, 50_000),
        (150_000, len(BODY) - 150_000),
    ]
    assert f"{NAME}: 97.7 KiB of 293." in capsys.readouterr().err


def test_a_reset_connection_is_continued(server, tmp_path):
    server.files[f"/{NAME}"].cuts, server.files[f"/{NAME}"].resets = [100_000, 100_000], True
    assert fetched(server, tmp_path, md5=md5(BODY)) == BODY
    assert len(server.log) == 3


def test_a_server_that_falls_silent_is_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(http_file, "_TIMEOUT", 0.1)
    silence = threading.Event()
    server.files[f"/{NAME}"].cuts, server.files[f"/{NAME}"].then = [100_000], lambda: silence.wait(10)
    assert fetched(server, tmp_path, md5=md5(BODY)) == BODY
    silence.set()
    assert [start for _, start, _ in server.log] == [0, 65536], "what came of a piece that was not whole is asked again"


def test_a_connection_that_is_cut_again_and_again_stops_and_the_next_call_goes_on(server, tmp_path):
    server.files[f"/{NAME}"].cuts = [100_000, 0, 0]
    text = fault(server, tmp_path)
    assert "cut (100000 of" in text and "tried 3 times; the same command goes on behind the 97.7 KiB" in text
    assert not (tmp_path / NAME).exists() and (tmp_path / f"{NAME}.part").stat().st_size == 100_000
    assert fetched(server, tmp_path) == BODY
    assert server.log[-1] == (f"/{NAME}", 100_000, len(BODY) - 100_000)


def test_a_network_that_goes_away_meanwhile_may_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with file_server() as server:
        server.files[f"/{NAME}"] = Served(BODY, cuts=[100_000], then=server.stop)
        text = fault(server, tmp_path)
    assert "cut (Connection refused), tried 3 times; the same command goes on behind the 97.7 KiB" in text


def test_an_interrupted_download_is_continued_by_the_next_call(server, tmp_path):
    answered = threading.Event()

    part = tmp_path / f"{NAME}.part"

    def interrupt():
        while not (part.exists() and part.stat().st_size):
            time.sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        answered.wait(10)

    server.files[f"/{NAME}"].cuts, server.files[f"/{NAME}"].then = [3 << 16], interrupt
    with pytest.raises(KeyboardInterrupt):
        fetch(download(server), tmp_path, waits=WAITS)
    answered.set()
    arrived = part.stat().st_size
    assert 0 < arrived <= 3 << 16 and not (tmp_path / NAME).exists()
    assert fetched(server, tmp_path) == BODY
    assert server.log[-1][1] == arrived


def test_what_was_whole_when_the_process_ended_is_not_asked_for_again(server, tmp_path):
    fetched(server, tmp_path)
    (tmp_path / NAME).rename(tmp_path / f"{NAME}.part")
    version = http_file.Version(f"{server.address}/{NAME}", '"one"', None, len(BODY))
    (tmp_path / f"{NAME}.part.json").write_text(json.dumps(vars(version)))
    assert fetched(server, tmp_path) == BODY
    assert len(server.log) == 1


@pytest.mark.parametrize("looks_at_if_range", [True, False], ids=["if-range", "no if-range"])
@pytest.mark.parametrize("other", [OTHER, OTHER[:90_000]], ids=["longer", "shorter than what has come"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"etag": '"one"'}, {"etag": '"two"'}),
        (
            {"etag": 'W/"one"', "last_modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
            {"etag": 'W/"one"', "last_modified": "Tue, 02 Jan 2024 00:00:00 GMT"},
        ),
    ],
    ids=["etag", "time"],
)
def test_a_file_that_has_changed_is_begun_anew(server, tmp_path, looks_at_if_range, other, before, after):
    server.files[f"/{NAME}"] = Served(BODY, **before, cuts=[100_000])
    fault(server, tmp_path, waits=())
    server.files[f"/{NAME}"] = Served(other, **after, looks_at_if_range=looks_at_if_range)
    assert fetched(server, tmp_path) == other
    assert server.log[-1] == (f"/{NAME}", 0, len(other))
    assert server.log[1][1] == (0 if looks_at_if_range else 100_000)


@pytest.mark.parametrize(
    "served",
    [{"ranges": False}, {"etag": None}, {"etag": 'W/"weak"'}, {"etag": '"a\r\n b"'}],
    ids=["no ranges", "no version", "weak", "two lines"],
)
def test_a_server_that_cannot_continue_sends_the_file_anew_and_is_not_asked_for_ever(server, tmp_path, served):
    server.files[f"/{NAME}"] = Served(BODY, **served, cuts=[100_000, 100_000, 100_000])
    assert fetched(server, tmp_path, waits=(*WAITS, 0.001), md5=md5(BODY)) == BODY
    assert [start for _, start, _ in server.log] == [0] * 4
    server.files["/again.gz"] = Served(BODY, **served, cuts=[100_000] * 9)
    assert "was cut (100000 of" in fault(server, tmp_path, name="again.gz")
    assert len(server.log) == 4 + 3, "the first, and one for each wait"


def test_a_file_of_unknown_length_is_fetched(server, tmp_path):
    server.files[f"/{NAME}"].tells_length = False
    assert fetched(server, tmp_path, md5=md5(BODY)) == BODY


def test_a_file_that_comes_in_chunks_is_continued(server, tmp_path, caplog):
    server.files[f"/{NAME}"].in_chunks, server.files[f"/{NAME}"].cuts = True, [100_000]
    assert fetched(server, tmp_path, md5=md5(BODY)) == BODY
    assert [start for _, start, _ in server.log] == [0, 65536], "what came of a piece that was not whole is asked again"
    assert "the connection was cut (IncompleteRead" in caplog.text


def test_a_wrong_checksum_leaves_nothing_and_names_both_sums(server, tmp_path):
    text = fault(server, tmp_path, md5=md5(OTHER))
    assert md5(BODY) in text and md5(OTHER) in text and "publisher.example/page" in text
    assert [path.name for path in tmp_path.iterdir()] == [".download.lock"]
    server.files[f"/{NAME}"].body = OTHER
    assert fetched(server, tmp_path, md5=md5(OTHER)) == OTHER


@pytest.mark.parametrize("status", [401, 403, 404, 410, 204])
def test_a_refusal_is_told_at_once_with_the_page_of_the_publisher(server, tmp_path, status):
    server.files[f"/{NAME}"].statuses = [status]
    text = fault(server, tmp_path)
    assert f"{server.address}/{NAME}: the server answers {status} " in text and "publisher.example/page" in text
    assert len(server.log) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.files[f"/{NAME}"].statuses = [503, 429]
    assert fetched(server, tmp_path) == BODY
    server.files["/busy.gz"] = Served(BODY, statuses=[503, 500, 502])
    assert "answers 502 Bad Gateway, tried 3 times" in fault(server, tmp_path, name="busy.gz")


def test_without_a_network_the_message_is_one_line(server, tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server.address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert "cannot be reached (Connection refused); check the network" in fault(server, tmp_path)

    def no_name(*arguments, **more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    assert "cannot be reached (Name or service not known); check the network" in fault(server, tmp_path)


def test_a_redirection_is_followed_with_what_is_asked_for(server, tmp_path):
    server.files["/new.gz"] = Served(BODY, cuts=[100_000])
    server.files[f"/{NAME}"].leads_to = f"{server.address}/new.gz"
    assert fetched(server, tmp_path, md5=md5(BODY)) == BODY
    assert [start for _, start, _ in server.log] == [0, 100_000]
    server.files["/circle.gz"] = Served(b"", leads_to=f"{server.address}/circle.gz")
    assert "answers 302 Found" in fault(server, tmp_path, name="circle.gz")
    server.files["/nowhere.gz"] = Served(b"", leads_to="http://[")
    assert "nowhere.gz: the answer is no HTTP (Invalid IPv6 URL), tried" in fault(server, tmp_path, name="nowhere.gz")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -out c -keyout k"
    subprocess.run([*command.split(), "-subj", "/CN=localhost"], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c", tmp_path / "k")
    with file_server(context) as server:
        text = fault(server, tmp_path / "raw")
        assert "its certificate is not accepted (self" in text and "SSL_CERT_FILE" in text
        server.files[f"/{NAME}"] = Served(BODY)
        # What the message proposes: a certificate by name. This one names another host.
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c"))
        assert "IP address mismatch" in fault(server, tmp_path / "raw")
        server.address = server.address.replace("127.0.0.1", "localhost")
        assert fetched(server, tmp_path / "raw") == BODY
        with file_server() as plain:
            plain.files[f"/{NAME}"] = Served(BODY)
            server.files["/on.gz"] = Served(b"", leads_to=f"{plain.address}/{NAME}")
            assert f"leads to {plain.address}/{NAME}, expected https" in fault(server, tmp_path / "raw", name="on.gz")


def test_a_login_page_in_the_place_of_the_file_is_refused(server, tmp_path):
    server.files[f"/{NAME}"].body = b"<!DOCTYPE html><title>Log in to this network</title>"
    text = fault(server, tmp_path)
    assert "begins with b'<!DOCTYPE html>" in text and "expected a .gz file" in text
    assert [path.name for path in tmp_path.iterdir()] == [".download.lock"]


def test_a_full_disk_and_a_folder_that_cannot_be_written_are_one_line(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert "cannot be written (Not a directory)" in fault(server, tmp_path / "file" / "raw")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
        assert "KiB are to come, and the disk has 1 B free" in fault(server, tmp_path)

    def full(file, chunk):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(http_file, "_write", full)
        assert "no space left on the disk; free some" in fault(server, tmp_path)
    assert len(server.log) == 2, "a disk is not a connection that might come back"
    assert fetched(server, tmp_path) == BODY


def test_a_file_that_is_there_is_compared_with_what_is_known_of_it(server, tmp_path):
    path = tmp_path / NAME
    path.write_bytes(BODY)
    assert "leave out --download to use it, or delete it" in fault(server, tmp_path)
    assert fetched(server, tmp_path, md5=md5(BODY)) == BODY, "the publisher's sum vouches for it"
    assert f"has the checksum {md5(BODY)}, expected {md5(OTHER)}" in fault(server, tmp_path, md5=md5(OTHER))
    path.unlink()
    fetched(server, tmp_path)
    path.write_bytes(BODY[:-1])
    assert f"expected {hashlib.sha256(BODY).hexdigest()}" in fault(server, tmp_path)
    assert path.read_bytes() == BODY[:-1] and len(server.log) == 1
    path.unlink()
    assert fetched(server, tmp_path) == BODY


def test_a_part_from_elsewhere_is_not_continued(server, tmp_path):
    server.files[f"/2014/{NAME}"] = Served(OTHER, cuts=[100_000])
    elsewhere = RemoteFile(f"{server.address}/2014/{NAME}", NAME)
    with pytest.raises(InputError):
        fetch(Download("reviews", "amazon", (elsewhere,), "https://publisher.example/page", "none"), tmp_path, waits=())
    assert fetched(server, tmp_path) == BODY
    assert server.log[1:] == [(f"/{NAME}", 0, len(BODY))]


def test_a_file_of_the_same_name_from_elsewhere_is_not_taken_for_it(server, tmp_path):
    server.files[f"/2014/{NAME}"] = Served(OTHER)
    elsewhere = RemoteFile(f"{server.address}/2014/{NAME}", NAME)
    fetch(Download("reviews", "amazon", (elsewhere,), "https://publisher.example/page", "none"), tmp_path)
    assert "name another folder" in fault(server, tmp_path)
    assert (tmp_path / NAME).read_bytes() == OTHER


def test_two_at_once_fetch_one_file(server, tmp_path):
    asked, go_on = threading.Event(), threading.Event()
    server.files[f"/{NAME}"].cuts = [100_000]
    server.files[f"/{NAME}"].then = lambda: (asked.set(), go_on.wait(10))
    contents = []
    both = [threading.Thread(target=lambda: contents.append(fetched(server, tmp_path))) for _ in range(2)]
    both[0].start()
    assert asked.wait(10)
    both[1].start()
    both[1].join(0.1)
    assert both[1].is_alive() and len(server.log) == 1, "the second waits"
    go_on.set()
    for thread in both:
        thread.join()
    assert contents == [BODY, BODY]
    assert sum(sent for *_, sent in server.log) == len(BODY)


@pytest.mark.parametrize("form", ["MD5 (ml.zip) = {}\n", "{}  ml.zip\n"], ids=["md5", "md5sum"])
def test_the_sum_that_a_publisher_keeps_beside_a_file_is_fetched_and_compared(server, tmp_path, form):
    beside = {"name": NAME, "md5_address": f"{server.address}/{NAME}.md5"}
    server.files[f"/{NAME}.md5"] = Served(form.format(md5(OTHER)).encode())
    assert md5(OTHER) in fault(server, tmp_path, **beside)
    server.files[f"/{NAME}.md5"].body = form.format(md5(BODY).upper()).encode()
    assert fetched(server, tmp_path, **beside) == BODY
    assert read_record(tmp_path)[NAME]["compared_with"] == f"MD5 {md5(BODY)}"
    assert fetched(server, tmp_path, **beside) == BODY
    assert len(server.log) == 4, "what is whole asks for neither"


def test_a_sum_that_is_none_is_refused_and_the_file_need_not_come_again(server, tmp_path):
    beside = {"name": NAME, "md5_address": f"{server.address}/{NAME}.md5"}
    server.files[f"/{NAME}.md5"] = Served(b"<html>moved</html>")
    # The sum of an earlier file, from a process that was killed when it had come whole.
    (tmp_path / f"{NAME}.md5.part").write_text(md5(OTHER))
    version = http_file.Version(beside["md5_address"], '"one"', None, 32)
    (tmp_path / f"{NAME}.md5.part.json").write_text(json.dumps(vars(version)))
    assert "found '<html>moved</html>', expected one MD5" in fault(server, tmp_path, **beside)
    server.files[f"/{NAME}.md5"] = Served(md5(BODY).encode())
    assert fetched(server, tmp_path, **beside) == BODY
    assert [path for path, *_ in server.log].count(f"/{NAME}") == 1


def archive(path, contents, compression=zipfile.ZIP_DEFLATED):
    """The bytes of a zip archive of files by name; a ZipInfo may stand in the place of a name."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, text in contents.items():
            file.writestr(name, text)
    return path.read_bytes()


RATINGS = {"ml/ratings.csv": "userId,movieId,rating,timestamp\n1,2,3,4\n", "ml/movies.csv": "movieId,title,genres\n"}


def serve_archive(server, folder, contents, **more):
    body = archive(folder.parent / "made.zip", contents, **more)
    server.files["/ml.zip"] = Served(body)
    return {"name": "ml.zip", "md5": md5(body), "members": MEMBERS}


def test_an_archive_gives_the_files_that_it_is_fetched_for_and_writes_nothing_else(server, tmp_path):
    folder = tmp_path / "raw"
    hostile = {"../evil": "1", "/tmp/evil_of_idgenrec": "1", "ml/../../evil": "1", "ml/tags.csv": "1"}
    more = serve_archive(server, folder, hostile | RATINGS)
    paths = fetch(download(server, **more), folder)
    assert paths == [folder / name for name in MEMBERS]
    assert {path.relative_to(folder).as_posix(): path.read_text() for path in paths} == RATINGS
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert written == [
        "made.zip", "raw/.download.lock", "raw/download.json", "raw/ml.zip", "raw/ml/movies.csv", "raw/ml/ratings.csv",
    ]  # fmt: skip
    assert fetch(download(server, **more), folder) == paths and len(server.log) == 1
    paths[0].write_text(RATINGS[MEMBERS[0]].replace("3", "5"))
    text = fault(server, folder, **more)
    assert "differs from that in the archive" in text and f"delete {folder / 'ml'}" in text
    shutil.rmtree(folder / "ml")
    assert fetch(download(server, **more), folder)[0].read_text() == RATINGS[MEMBERS[0]]


def link(name):
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o120777 << 16
    return member


@pytest.mark.parametrize(
    ("contents", "compression", "message"),
    [
        ({link("ml/ratings.csv"): "/etc/passwd", "ml/movies.csv": ""}, zipfile.ZIP_STORED, "is a link or a device"),
        ({"ml/ratings.csv": "0" * 5_000_000, "ml/movies.csv": ""}, zipfile.ZIP_DEFLATED, "unpack to 4.8 MiB, expected"),
        ({"ml/ratings.csv": ""}, zipfile.ZIP_DEFLATED, "has no ml/movies.csv, found 'ml/ratings.csv'"),
        (RATINGS, zipfile.ZIP_BZIP2, "encrypted or not packed by deflate"),
    ],
    ids=["link", "bomb", "missing", "bzip2"],
)
def test_an_archive_that_is_not_what_it_should_be_unpacks_to_nothing(server, tmp_path, contents, compression, message):
    folder = tmp_path / "raw"
    more = serve_archive(server, folder, contents, compression=compression)
    text = fault(server, folder, **more)
    assert message in text and "delete it to have it fetched anew" in text
    assert not (folder / "ml").exists() and not list(folder.glob(".ml*"))


@pytest.mark.parametrize("damage", [0, 40, 60, -30, -60], ids=lambda place: f"byte {place}")
def test_a_broken_archive_is_one_line(server, tmp_path, damage):
    folder = tmp_path / "raw"
    more = serve_archive(server, folder, {"ml/ratings.csv": "1,2,3,4\n" * 9, "ml/movies.csv": "1,2\n" * 9})
    body = bytearray(server.files["/ml.zip"].body)
    body[damage : damage + 9 if damage + 9 else None] = b"PK\xff\xff\xff\xff\xff\xff\xff"
    server.files["/ml.zip"].body = bytes(body)
    assert str(folder) in fault(server, folder, **more | {"md5": None})
    assert not (folder / "ml").exists()


def test_an_archive_that_the_disk_has_no_room_for_is_not_unpacked(server, tmp_path, monkeypatch):
    folder = tmp_path / "raw"
    more = serve_archive(server, folder, RATINGS | {"ml/movies.csv": "1,2\n" * 900})
    free = len(server.files["/ml.zip"].body) + 100
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9999, 0, free))
    assert "unpacks to 3.6 KiB, and the disk has" in fault(server, folder, **more)
    assert not (folder / "ml").exists()


def test_the_table_names_each_download_once_with_what_its_publisher_gives():
    assert len(DOWNLOADS) == 7 + 24 + 29 + 33
    for name, entry in DOWNLOADS.items():
        assert entry.name == name and entry.licence and entry.page.startswith("https://")
        for file in entry.files:
            assert file.address.startswith("https://") and file.address.endswith(f"/{file.name}")
            assert bool(file.members) == file.name.endswith(".zip")
            assert file.md5 is None or re.fullmatch("[0-9a-f]{32}", file.md5)
    addresses = {name: [file.address for file in DOWNLOADS[name].files] for name in DOWNLOADS}
    lab = "https://mcauleylab.ucsd.edu/public_datasets/data"
    assert addresses["beauty_2014"] == [
        f"{lab}/amazon/categoryFiles/reviews_Beauty_5.json.gz",
        f"{lab}/amazon/categoryFiles/meta_Beauty.json.gz",
    ]
    assert addresses["sports_2018"] == [
        f"{lab}/amazon_v2/categoryFilesSmall/Sports_and_Outdoors_5.json.gz",
        f"{lab}/amazon_v2/metaFiles2/meta_Sports_and_Outdoors.json.gz",
    ]
    assert addresses["video_games_2023"] == [
        f"{lab}/amazon_2023/raw/review_categories/Video_Games.jsonl.gz",
        f"{lab}/amazon_2023/raw/meta_categories/meta_Video_Games.jsonl.gz",
    ]
    [latest] = DOWNLOADS["ml-latest-small"].files
    assert latest.md5 is None and latest.md5_address == f"{latest.address}.md5"
    assert {"toys_2014", "office_2014", "ml-100k", "ml-1m", "ml-10m", "ml-20m", "ml-25m", "ml-32m"} <= DOWNLOADS.keys()
