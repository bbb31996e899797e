"""What keeps a remote file from being read: retried where that helps, and named for what it is."""

import json
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

import pytest

from imagenet_rn50.runs.sync import RemoteRun
from imagenet_rn50.shards.store import open_shards
from imagenet_rn50.utils import storage as remote
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.storage import (
    MissingFileError,
    RemoteFolder,
    RetryPolicy,
    UnusableFileError,
    filesystem,
)
from tests.data.servers import Quiet, serve
from tests.support import free_ports, write_shards

QUICK = RetryPolicy(tries=3, initial_backoff=0.01, timeout=1)
FILES = ("manifest.json", "manifest-train.npz", "classes.json", "tiny-train-0.tar")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    return folder, write_shards(folder, train=[2], validation=[1]).split("train")


@pytest.fixture
def server(source):
    with serve(source[0]) as running:
        yield running


@pytest.fixture
def pauses(monkeypatch):
    """Records how long is waited, and does not wait."""
    recorded: list[float] = []
    monkeypatch.setattr("imagenet_rn50.utils.storage.time.sleep", recorded.append)
    return recorded


def read_all(location, split, cache, retry_policy=QUICK):
    store = open_shards(location, cache=cache, retry_policy=retry_policy)
    return [store.fetch(shard) for shard in split.shards]


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [(name, 403, "may not be read") for name in FILES]
    + [(name, 404, "there is no") for name in FILES]
    + [(FILES[0], 401, "may not be read"), (FILES[0], 410, "there is no")]
    + [(FILES[0], 400, "cannot be downloaded"), (FILES[0], 501, "cannot be downloaded")],
)
def test_what_a_server_refuses_is_asked_for_once_and_named(
    server, source, tmp_path, name, status, words
):
    server.hiccups[name] = [status] * 9
    with pytest.raises(InputError, match=words) as refused:
        read_all(server.address, source[1], tmp_path)
    assert f"{server.address}/{name}" in str(refused.value)
    assert status == 404 or f"HTTP status {status}" in str(refused.value)
    assert server.requests[name] == 1
    assert isinstance(refused.value, MissingFileError) == (status in {404, 410})


@pytest.mark.parametrize(
    ("name", "hiccup"),
    [(name, hiccup) for name in FILES for hiccup in (429, 503, "reset", "truncate")]
    + [(FILES[0], hiccup) for hiccup in (408, 500, 502, 504, 520, "stall", "hang up")],
)
def test_what_may_pass_is_tried_again_for_every_file(server, source, tmp_path, name, hiccup):
    server.hiccups[name] = [hiccup, hiccup]
    read_all(server.address, source[1], tmp_path)
    assert server.requests[name] == 3


@pytest.mark.parametrize(
    ("hiccup", "words"),
    [(429, "HTTP status 429"), (503, "HTTP status 503"), ("reset", "connection broke")]
    + [("stall", "no answer in time"), ("truncate", "cut short"), ("hang up", "connection broke")]
    + [("truncate silently", "no JSON"), ("page", "no JSON")],
)
def test_what_does_not_pass_is_named_with_the_number_of_tries(
    server, source, tmp_path, hiccup, words
):
    server.hiccups["manifest.json"] = [hiccup] * 9
    with pytest.raises(
        InputError, match=rf"manifest\.json cannot be downloaded(.|\n)*{words}"
    ) as e:
        read_all(server.address, source[1], tmp_path)
    assert "the last of 3 tries" in str(e.value)
    assert not isinstance(e.value, MissingFileError)


def test_redirects_in_circles_are_named_at_once(server, source, tmp_path):
    server.hiccups["manifest.json"] = ["redirect"] * 99
    with pytest.raises(InputError, match="redirects in circles"):
        read_all(server.address, source[1], tmp_path)
    assert server.requests["manifest.json"] < 20


def test_a_manifest_cut_short_without_a_length_is_tried_again(server, source, tmp_path):
    server.hiccups["manifest.json"] = ["truncate silently"]
    read_all(server.address, source[1], tmp_path)
    assert server.requests["manifest.json"] == 2


@pytest.mark.parametrize("as_date", [False, True])
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_is_given_the_time_that_it_asks_for(
    server, source, tmp_path, pauses, as_date, status
):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    server.retry_after = date if as_date else "60"
    server.hiccups["manifest.json"] = [status, status]
    read_all(server.address, source[1], tmp_path)
    assert all(50 < pause <= 60 for pause in pauses[:2])
    assert len(pauses) == 2


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"ratelimit": '"resolvers";r=0;t=17'}, 17),
        ({"ratelimit": '"api";r=3;t=17'}, 0),
        ({"ratelimit": '"api";r=0;t=17', "retry-after": "5"}, 5),
    ],
)
def test_the_hubs_rate_limit_says_how_long_to_wait(headers, seconds):
    response = SimpleNamespace(status_code=429, headers=headers)
    error = RuntimeError()
    error.response = response  # type: ignore[attr-defined]
    assert remote.transfer_error(error, "hf").retry_after == seconds


@pytest.mark.parametrize("value", ["3600", "inf", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_server_that_asks_for_an_hour_is_not_waited_for(server, source, tmp_path, pauses, value):
    server.retry_after = value
    server.hiccups["manifest.json"] = [429] * 9
    with pytest.raises(InputError, match="the server asks to wait for"):
        read_all(server.address, source[1], tmp_path)
    assert server.requests["manifest.json"] == 1
    assert not pauses


@pytest.mark.parametrize("value", ["soon", "-5", "nan", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_senseless_time_to_wait_is_not_waited_for(server, source, tmp_path, value):
    server.retry_after = value
    server.hiccups["manifest.json"] = [429]
    began = time.monotonic()
    read_all(server.address, source[1], tmp_path)
    assert time.monotonic() - began < 5


def test_a_refused_connection_is_tried_again_until_the_server_is_up(source, tmp_path):
    (port,) = free_ports()
    with pytest.raises(InputError, match=r"connection refused, in the last of 3 tries"):
        read_all(f"http://127.0.0.1:{port}/x", source[1], tmp_path)


def test_a_host_that_is_not_known_is_named(source, tmp_path):
    with pytest.raises(InputError, match=r"https://no-such\.invalid/x(.|\n)*host name is not res"):
        read_all("https://no-such.invalid/x?token=s3cr3t", source[1], tmp_path)


def test_a_server_without_tls_is_named(server, source, tmp_path):
    with pytest.raises(InputError, match="no TLS connection"):
        read_all(server.address.replace("http://", "https://"), source[1], tmp_path)


@pytest.fixture
def untrusted(tmp_path):
    """The port of a server whose certificate nobody signed."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "pem").write_bytes(certificate.public_bytes(pem) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    http = Quiet(("127.0.0.1", 0), BaseHTTPRequestHandler)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield http.server_port
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_certificate_that_nobody_signed_is_named_at_once(untrusted, source, tmp_path, pauses):
    with pytest.raises(InputError, match="certificate is not trusted"):
        read_all(f"https://127.0.0.1:{untrusted}/x", source[1], tmp_path)
    assert not pauses


def test_bytes_that_trickle_for_ever_are_given_up(source, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_LEAST_BYTES_PER_S", 10**9)
    retry_policy = RetryPolicy(tries=2, initial_backoff=0.01, timeout=0)
    (tmp_path / "file").write_bytes(bytes(100))
    folder = RemoteFolder(f"file://{tmp_path}", retry_policy)
    with pytest.raises(InputError, match="100 bytes in 0 s, in the last of 2 tries"):
        folder.download("file", tmp_path / "target")


@pytest.mark.parametrize("address", ["http://host:99999/x", "s3://", "http:///x", "https://[::1/x"])
def test_an_address_that_is_none_is_not_tried_again(source, tmp_path, pauses, address):
    with pytest.raises(InputError, match=r"cannot be downloaded|has no host or bucket"):
        read_all(address, source[1], tmp_path)
    assert not pauses


# Runs that are synced


@pytest.mark.parametrize("hiccup", [403, 503, "page", "truncate silently", "reset"])
def test_a_run_that_cannot_be_read_is_not_taken_for_none(server, tmp_path, hiccup):
    server.folder = tmp_path
    (tmp_path / "latest.json").write_text(json.dumps({"files": []}))
    server.hiccups["latest.json"] = [hiccup] * 9
    with pytest.raises(InputError):
        RemoteRun(RemoteFolder(server.address, QUICK)).latest()


def test_a_folder_in_the_place_of_a_run_is_named_at_once(tmp_path, pauses):
    (tmp_path / "file").touch()
    run = RemoteRun(RemoteFolder(str(tmp_path / "file"), QUICK))
    with pytest.raises(InputError, match="Not a directory"):
        run.latest()
    with pytest.raises(InputError, match=r"Not a directory|File exists"):
        run.require_writable()
    assert not pauses


def test_a_run_that_is_not_there_is_none(server, tmp_path):
    server.folder = tmp_path
    assert RemoteRun(RemoteFolder(server.address, QUICK)).latest() is None


# S3


@pytest.fixture
def s3(monkeypatch):
    """Makes the environment name an endpoint."""

    def use(address, **credentials):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        given = credentials or {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        given |= {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
        given |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nowhere"}
        given |= {"AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        filesystem.cache_clear()

    yield use
    filesystem.cache_clear()


def test_a_missing_key_and_a_missing_bucket_are_told_apart(bucket_server, source, tmp_path, pauses):
    bucket_server.create_bucket(Bucket="pictures")
    with pytest.raises(MissingFileError, match=r"there is no s3://pictures/sets/manifest\.json"):
        read_all("s3://pictures/sets", source[1], tmp_path)
    with pytest.raises(InputError, match="NoSuchBucket") as refused:
        read_all("s3://no-such-bucket/sets", source[1], tmp_path)
    assert not isinstance(refused.value, UnusableFileError)
    assert not pauses


@pytest.mark.parametrize(
    ("status", "num_requests", "words"),
    [(403, 1, "may not be read"), (401, 1, "may not be read"), (301, 1, "AWS_DEFAULT_REGION")]
    + [(429, 3, "the last of 3 tries"), (500, 3, "HTTP status 500"), (503, 3, "HTTP status 503")],
)
def test_what_s3_refuses_is_named_and_tried_again_where_that_helps(
    server, source, tmp_path, s3, status, num_requests, words
):
    s3(server.address.rpartition("/sets")[0])
    server.hiccups["manifest.json"] = [status] * 9
    with pytest.raises(InputError, match=words) as refused:
        read_all("s3://pictures/sets", source[1], tmp_path)
    assert "s3://pictures/sets/manifest.json" in str(refused.value)
    assert server.requests["manifest.json"] == num_requests


def test_missing_credentials_are_named_at_once(server, source, tmp_path, s3, pauses):
    s3(server.address, AWS_PROFILE_OF_NOBODY="")
    with pytest.raises(InputError, match=r"may not be read(.|\n)*no credentials(.|\n)*AWS_PROFILE"):
        read_all("s3://pictures/sets", source[1], tmp_path)
    assert not pauses


def test_an_endpoint_out_of_reach_is_named(source, tmp_path, s3):
    (port,) = free_ports()
    s3(f"http://127.0.0.1:{port}")
    with pytest.raises(
        InputError, match=r"connection refused, in the last of 3(.|\n)*AWS_ENDPOINT"
    ):
        read_all("s3://pictures/sets", source[1], tmp_path)
