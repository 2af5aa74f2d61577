"""Parts of files from a web server that fails in every way."""

import random
import threading
from contextlib import ExitStack

import pytest
from range_server import Content, RangeServer

from convert_to_quant.files.remote.address import RemoteFile
from convert_to_quant.files.remote.web import WebSource
from convert_to_quant.formats.errors import CheckpointError

DATA = random.Random(0).randbytes(100_000)


@pytest.fixture
def server():
    with RangeServer({"/m.safetensors": Content(DATA)}) as running:
        yield running


def open_at(address: str) -> WebSource:
    return WebSource(RemoteFile(address), address)


@pytest.mark.parametrize("fault", ["reset", "short", "busy", "broken"])
def test_a_read_goes_on_where_it_was_cut_off(server, fault):
    server.faults = [fault, "none", fault, fault]
    if fault == "short":
        server.faults = ["none", *[fault] * 3]
    source = open_at(f"{server.url}/m.safetensors")
    assert (source.size, source.version) == (len(DATA), '"1"')
    assert source.read(10, 90_000) == DATA[10:90_010]
    if fault == "short":
        starts = [r[0] for r in server.ranges() if r][1:]
        assert starts == [10, 45_010, 67_510, 78_760], "only the rest is asked for again"


def test_a_read_is_given_up_after_some_failures_in_a_row(server):
    server.faults = ["none", *["reset"] * 7]  # the first one is of a connection that was open
    source = open_at(f"{server.url}/m.safetensors")
    with pytest.raises(CheckpointError, match=r"given up after 6 tries: .* goes on where it stopped"):
        source.read(0, 10)
    assert source.read(0, 10) == DATA[:10]


REFUSED = {
    "busy_for_hours": "429 Too Many Requests; given up after 1 try",
    "changed": "was changed, replaced or removed while it was read",
    "other_part": "answers with other bytes than it was asked for",
    "whole": "sends only whole files, not parts of them; download it first",
}


@pytest.mark.parametrize(("fault", "message"), REFUSED.items())
def test_what_is_not_the_part_asked_for_is_refused(server, fault, message):
    server.faults = ["none", fault]
    source = open_at(f"{server.url}/m.safetensors")
    with pytest.raises(CheckpointError, match=message):
        source.read(0, 1000)


def test_a_server_without_ranges_is_refused_before_it_sends_the_file(server):
    server.files["/m.safetensors"].size = 1 << 34
    server.faults = ["whole"]
    with pytest.raises(CheckpointError, match="sends only whole files"):
        open_at(f"{server.url}/m.safetensors")


def test_what_is_not_there_is_told(server):
    with pytest.raises(CheckpointError, match=r"/n: no such file there \(HTTP 404 Not Found\)") as error:
        open_at(server.url.replace("//", "//me:secret@") + "/n?sig=signed")
    assert "secret" not in str(error.value)
    assert "signed" not in str(error.value)
    for address in ("https://[", "https:///m", "https://h:99999/m", "http://a\x00b/m"):
        with pytest.raises(CheckpointError, match="is no"):
            open_at(address)


def test_a_password_is_for_its_own_host_only(server):
    with RangeServer(dict(server.files)) as other:
        server.redirects = {"/here": "/there", "/there": f"{other.url}/m.safetensors"}
        source = open_at(server.url.replace("//", "//me:secret@") + "/here")
        assert source.read(5, 5) == DATA[5:10]
    assert all(r.headers["authorization"].startswith("Basic ") for r in server.requests)
    assert [r.path for r in server.requests] == ["/here", "/there"], "where it led is remembered"
    assert all("authorization" not in r.headers for r in other.requests)


def test_an_address_that_has_run_out_is_asked_for_again(server):
    with RangeServer({"/a": Content(DATA)}) as other:
        server.redirects = {"/m": f"{other.url}/a"}
        source = open_at(f"{server.url}/m")
        server.redirects, other.files = {"/m": f"{other.url}/b"}, {"/b": Content(DATA)}
        assert source.read(0, 9) == DATA[:9]


@pytest.mark.parametrize("leads", ["file:///etc/passwd", "/m"])
def test_redirects_that_are_not_followed(server, leads):
    server.redirects = {"/m": leads}
    with pytest.raises(CheckpointError, match=r"leads on to file:///etc/passwd|without end"):
        open_at(f"{server.url}/m")


def test_an_empty_file_has_no_bytes(server):
    server.files["/e"] = Content(b"")
    assert open_at(f"{server.url}/e").size == 0


def test_closing_ends_a_wait(server):
    server.faults = ["none", "busy_for_minutes"]
    source = open_at(f"{server.url}/m.safetensors")
    errors: list[CheckpointError] = []

    def read() -> None:
        try:
            source.read(0, 10)
        except CheckpointError as e:
            errors.append(e)

    with ExitStack() as stack:
        thread = threading.Thread(target=read)
        thread.start()
        stack.callback(thread.join)
        while len(server.requests) < 2:
            thread.join(0.01)
        source.close()
    assert "interrupted" in str(errors[0])
    assert source.read(0, 10) == DATA[:10]
