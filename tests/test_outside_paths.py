"""Names, links and URLs in files from others: nothing outside a folder is read or written, and no secret is shown."""

import base64
from fractions import Fraction
import functools
import http.server
import json
import logging
import os
from pathlib import Path
import pickle
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import fsspec
import jax
import numpy as np
import pytest

from diversity_jax.core import buckets, run_info
from diversity_jax.core.artifacts import exclusive_lock
from diversity_jax.core.buckets import local_copy
from diversity_jax.core.cli import run_plain
from diversity_jax.core.config import plain_for_keys
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import path_inside, read_json, relative_path, write_json, writing
from diversity_jax.corpus import CorpusConfig
from diversity_jax.evaluation.results import read_samples
from diversity_jax.mixtures import builder, fetch
from diversity_jax.mixtures import prepare as prepare_module
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model.checkpoint_io import shards
from diversity_jax.prepare import beam
from diversity_jax.prepare.config import Preparation, PrepareConfig
from diversity_jax.prepare.manifest import Manifest
from diversity_jax.scoring.config import NamedCorpus
from diversity_jax.study.config import _as_json
from diversity_jax.tokenizers.files import model_tokenizer
from tests.mixture_folders import build_mixture

NAMES_OUTSIDE = (
    "../secret.txt",
    "a/../../secret.txt",
    "/etc/hostname",
    "..",
    ".",
    "",
    "a//b",
    "gs://b/x",
    "a\\b",
    3,
    None,
)


@pytest.mark.parametrize("name", NAMES_OUTSIDE)
def test_names_that_lead_out_of_a_folder_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"m.json: files: .* is not the name of a file in "):
        path_inside(tmp_path, name, "m.json: files")


def test_links_that_lead_out_of_a_folder_are_refused_and_the_hub_cache_is_read(tmp_path):
    folder = tmp_path / "model" / "snapshots" / "0ab1"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "model" / "blobs").mkdir()
    (tmp_path / "model" / "blobs" / "77").write_text("weights")
    (tmp_path / "secret.txt").write_text("private")
    (folder / "inside").write_text("x")
    for name, target in (("to_blob", "../../blobs/77"), ("to_inside", "inside"), ("to_secret", "../../../secret.txt")):
        (folder / name).symlink_to(target)
    (folder / "to_folder").symlink_to(tmp_path)
    for name in ("to_blob", "to_inside", "inner/new"):
        assert path_inside(folder, name, "index.json") == folder / name
    for name in ("to_secret", "to_folder/secret.txt"):
        with pytest.raises(InputError, match="a link that leads out of the folder"):
            path_inside(folder, name, "index.json")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_mixture(tmp_path_factory.mktemp("built") / "mixture", {"real": Fraction(1)})


@pytest.fixture
def mixture(built, tmp_path):
    """A mixture that a test may change, and a file beside it."""
    (tmp_path / "private.json").write_text("MARKER")
    return shutil.copytree(built, tmp_path / "downloaded")


def _edit(path: Path, **fields) -> None:
    write_json(path, read_json(path) | fields)


@pytest.mark.parametrize("is_link", [False, True])
def test_a_downloaded_run_does_not_publish_a_file_from_outside(mixture, tmp_path, is_link):
    component = mixture / "components" / "real"
    name = "../../../private.json"
    if is_link:
        name = "tokenizer.json"
        (component / name).symlink_to(tmp_path / "private.json")
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"settings": {"prepared": str(mixture), "output_dir": str(run)}}))
    for file in (mixture / "mixture.json", component / "manifest.json"):
        vocabulary = read_json(file)["vocabulary"]
        _edit(file, vocabulary=vocabulary | {"kind": "huggingface", "files": [name]})
    for read in (model_tokenizer, lambda folder: Manifest.load(component / "manifest.json")):
        with pytest.raises(InputError, match=r"is not the name of a file in|leads out of the folder"):
            read(run)


def test_shards_lie_in_their_folder(mixture):
    path = mixture / "components" / "real" / "manifest.json"
    splits = read_json(path)["splits"]
    splits["train"]["shards"][0]["file"] = "../../../private.json"
    _edit(path, splits=splits)
    with pytest.raises(InputError, match=r"manifest.json: shard: '../../../private.json' is not the name of a file"):
        Manifest.load(path)


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/../../../evil"])
def test_objects_of_a_bucket_are_copied_into_the_copy_alone(tmp_path, name, monkeypatch):
    monkeypatch.setenv("DIVERSITY_JAX_CACHE", str(tmp_path / "a" / "cache"))
    store = fsspec.filesystem("memory")
    store.pipe({"/b/model/good": b"x"})
    store.store[f"/b/model/{name}"] = store.store["/b/model/good"]
    try:
        with pytest.raises(InputError, match=r"memory://b/model: holds .*evil', which is not the name of a file in"):
            local_copy("memory://b/model")
    finally:
        store.store.clear()
    assert not list(tmp_path.rglob("evil"))


def test_a_component_elsewhere_is_recorded_without_its_password(tmp_path):
    for folder in (tmp_path, "s3://other/mixture"):
        assert relative_path("s3://KEY:MARKER@bucket/a/manifest.json", folder) == "s3://bucket/a/manifest.json"


def test_a_mixture_that_is_fetched_names_no_file_outside(mixture, tmp_path):
    path = mixture / "mixture.json"
    components = read_json(path)["components"]
    components[0]["decision"] |= {"scorecard": "../private.json"}
    _edit(path, components=components)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(InputError, match=r"decision.scorecard: '../private.json' is not the name of a file"):
        fetch.main([str(mixture), str(tmp_path / "elsewhere" / "fetched")])
    assert not list((tmp_path / "elsewhere").rglob("private.json"))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 101, "a\nb"])
def test_a_corpus_is_not_named_out_of_the_output_folder(name):
    with pytest.raises(InputError, match=r"config.corpora: name .* is to be a folder's too"):
        NamedCorpus(name=name, corpus=CorpusConfig(source="a.jsonl"))


def test_results_name_samples_beside_them(tmp_path):
    with pytest.raises(InputError, match="is not the name of a file"):
        read_samples(tmp_path, "../../other")


def test_beam_unpickles_only_what_the_launcher_wrote(tmp_path):
    class Marker:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    job = SimpleNamespace(staging_dir=str(tmp_path))
    path = beam._publish(job)
    assert beam._job(path).staging_dir == str(tmp_path)
    Path(path).write_bytes(pickle.dumps(Marker()))
    beam._job.cache_clear()
    with pytest.raises(InputError, match="is not what the launcher wrote"):
        beam._job(path)
    assert not (tmp_path / "ran").exists()


_WRITER = """
import os, sys
from diversity_jax.core.files import writing
os.getpid = lambda: 1  # as in a container
path, word, rounds = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
for _ in range(rounds):
    with writing(path) as file:
        for _ in range(8):
            file.write(word * 500)
            file.flush()
"""


def test_two_writers_with_one_process_id_leave_no_torn_file(tmp_path):
    path, rounds = tmp_path / "results.json", int(os.environ.get("TEST_ROUNDS", "150"))
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(path), word, str(rounds)], cwd=Path(__file__).parents[1])
        for word in "ab"
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            content = path.read_bytes()
            seen.add((len(content), len(set(content))))
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen == {(4000, 1)}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_link_is_neither_written_through_nor_locked(tmp_path, monkeypatch):
    private = tmp_path / "private"
    private.write_text("MARKER")
    monkeypatch.setattr("diversity_jax.core.files.uuid.uuid4", lambda: SimpleNamespace(hex="0" * 32))
    (tmp_path / f".out.{'0' * 16}.partial").symlink_to(private)
    with pytest.raises(FileExistsError), writing(tmp_path / "out") as file:
        file.write(b"other")
    (tmp_path / "lock").symlink_to(private)
    with pytest.raises(InputError, match=r"lock: is a link"), exclusive_lock(tmp_path / "lock", "{holder}"):
        pass
    (tmp_path / "published").symlink_to(private)
    with writing(tmp_path / "published") as file:
        file.write(b"new")
    assert [path.read_text() for path in (private, tmp_path / "published")] == ["MARKER", "new"]
    assert not os.path.islink(tmp_path / "published")


@pytest.fixture
def private_url():
    """A file behind a password, and its URL."""
    text = "\n".join(
        json.dumps({"text": f"document {number} about {number % 7} things"}) for number in range(80)
    ).encode()
    wanted = "Basic " + base64.b64encode(b"reader:MARKER").decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            allowed = self.headers.get("Authorization") == wanted
            self.send_response(200 if allowed else 401)
            self.send_header("Content-Length", str(len(text) if allowed else 0))
            self.end_headers()
            if allowed and self.command == "GET":
                self.wfile.write(text)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://reader:MARKER@127.0.0.1:{server.server_port}/texts.jsonl"
    server.shutdown()


def test_a_mixture_is_read_from_a_web_server_whose_listings_have_no_sizes(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    build_mixture(tmp_path, {"a": Fraction(1, 3), "b": Fraction(2, 3)}, documents=20)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = Mixture.load(f"http://127.0.0.1:{server.server_port}").loader(batch_size=8).batch(0)
        server.shutdown()
    assert np.array_equal(there.tokens, Mixture.load(tmp_path).loader(batch_size=8).batch(0).tokens)


def test_a_password_in_a_url_opens_the_file_and_stands_nowhere(private_url, tmp_path):
    corpus = CorpusConfig(source=private_url)
    config = PrepareConfig(
        output_dir=str(tmp_path / "rows"),
        corpus=corpus,
        preparation=Preparation(name="texts", kind="real", sequence_length=16),
        vocabulary="bytes",
    )
    prepare_module.main([], config)
    assert Manifest.load(tmp_path / "rows" / "manifest.json").splits["train"].documents > 70
    described = run_info.describe(["score.py", f"--config.corpus={private_url}"], config)
    described.save(tmp_path)
    write_json(tmp_path / "key.json", [plain_for_keys(config), _as_json(config)])
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not [content for content in written if b"MARKER" in content]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://KEY:MARKER@bucket/a.jsonl", "s3://bucket/a.jsonl"),
        ("https://h/a.jsonl?X-Amz-Signature=MARKER&part=2", "https://h/a.jsonl?X-Amz-Signature=***&part=2"),
        ("https://h/a?sv=1&sig=MARKER", "https://h/a?sv=1&sig=***"),
        ("simplecache::ftp://u:MARKER@h/a", "simplecache::ftp://h/a"),
        ("https://h/@user/a.jsonl", "https://h/@user/a.jsonl"),
        ("https://u:MAR@KER@h/a", "https://h/a"),
        ("mysql://u:MARKER@h/a#access_token=MARKER", "mysql://h/a#access_token=***"),
        ("https://h/a?author=Ann&auth=MARKER&n=1", "https://h/a?author=Ann&auth=***&n=1"),
    ],
)
def test_secrets_of_urls_are_not_shown(url, shown, capsys):
    assert str(InputError(f"{url}: no such file")) == f"{shown}: no such file"

    def command(arguments):
        logging.getLogger("diversity_jax").warning("reading %s", url)
        raise InputError(f"{url}: ends early")

    with pytest.raises(SystemExit):
        run_plain(command, None, ["x"])
    assert capsys.readouterr().err == f"reading {shown}\nerror: {shown}: ends early\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "../private"}, "is not the name of a file in"),
        ({"shape": [2**40]}, "has 8 bytes for"),
        ({"start": [0, 0]}, "of another number of axes"),
        ({"start": [-1]}, "begins or ends below 0"),
        ({"offset": "0"}, "offset is text; expected a whole number"),
    ],
)
def test_a_checkpoint_of_others_reads_its_own_files_by_its_record(tmp_path, change, words):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = {"params": jax.device_put(np.ones(2, np.float32), here)}
    (tmp_path / "private").write_bytes(b"12345678")
    folder = tmp_path / "1"
    shard_records = shards.write(folder, "part", shards.snapshot(tree))
    shard_records[0] |= change
    with pytest.raises(shards.DamagedCheckpoint, match=words):
        shards.read(
            folder,
            shards.record(tree, shard_records, {}),
            {"params": jax.ShapeDtypeStruct((2,), np.float32, sharding=here)},
        )


@pytest.mark.parametrize("share", ["1e-300000000", "1e999", "-1/2", "1/0", 0.5, None, "1/" + "9" * 5000])
def test_a_share_that_is_written_otherwise_is_refused_at_once(mixture, share):
    path = mixture / "mixture.json"
    components = read_json(path)["components"]
    components[0]["share_granted_exact"] = share
    _edit(path, components=components)
    with pytest.raises(InputError, match=r"mixture.json: .*(share|Fraction)"):
        Mixture.load(path)


def test_copies_of_single_files_of_a_bucket_do_not_displace_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("DIVERSITY_JAX_CACHE", str(tmp_path / "cache"))
    downloaded, download = [], buckets._download
    monkeypatch.setattr(
        buckets, "_download", lambda url, name, *others: (downloaded.append(name), download(url, name, *others))
    )
    store = fsspec.filesystem("memory")
    store.pipe({"/b/one.txt": b"1", "/b/two.txt": b"22"})
    try:
        for name, content in (("one", "1"), ("two", "22")) * 2:
            assert local_copy(f"memory://b/{name}.txt").read_text() == content
    finally:
        store.store.clear()
    assert downloaded == ["one.txt", "two.txt"]


def test_every_part_of_a_mixture_in_a_bucket_must_be_in_a_bucket(monkeypatch, tmp_path):
    monkeypatch.setattr(builder, "public_name", lambda folder: "gs://bucket/mixture")
    folders = {"first": tmp_path, "last": "gs://bucket/rows"}
    parts = {name: (Fraction(1, 2), SimpleNamespace(folder=folder)) for name, folder in folders.items()}
    config = SimpleNamespace(components_dir=None)
    with pytest.raises(InputError, match="component 'web': a mixture in a bucket cannot have rows in"):
        builder._check_reachable(config, tmp_path, {"web": SimpleNamespace(parts=parts)})
