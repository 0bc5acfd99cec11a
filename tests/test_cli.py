import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from typer.testing import CliRunner

from recengine.bundle import load_tensor, read_manifest, write_manifest
from recengine.cli import app, show
from recengine.cli.catalog import Catalog
from recengine.client import Feature, RecommenderClient, Schema
from recengine.compile import compile_bundle
from recengine.data import Dataset, FeatureTable, Interactions, Ragged
from recengine.errors import InputError
from recengine.keys import hash_key
from recengine.serving.server import TritonServer, wheel_tritonserver
from recengine.training import checkpoint, train

COMMANDS = {
    "train",
    "evaluate",
    "export",
    "compile",
    "serve",
    "recommend",
    "bench",
    "doctor",
}
HEAVY = "{'numpy', 'torch', 'grpc', 'polars', 'pydantic', 'openvino'}"

INTER = """user_id:token\titem_id:token\ttimestamp:float
7\t1\t10
7\t2\t20
8\t1\t30
"""
ITEM = """item_id:token\tmovie_title:token_seq\tclass:token_seq
1\tToy Story\tAnimation Comedy
2\tHeat\tCrime
"""


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "tiny.inter").write_text(INTER)
    (folder / "tiny.item").write_text(ITEM)
    return folder


def test_help_lists_every_command():
    result = invoke("--help")
    assert result.exit_code == 0
    assert set(re.findall(r"^│ (\w+) ", result.stdout, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS - {"bench"}))
def test_every_command_has_help(command):
    assert invoke(command, "--help").exit_code == 0


def test_starting_the_command_line_imports_nothing_heavy():
    code = f"import sys, recengine.cli; print({HEAVY} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert run.stdout == "set()\n"


def test_a_wrong_argument_exits_with_2(tmp_path):
    assert invoke("compile", tmp_path / "nothing").exit_code == 2
    assert invoke("recommend").exit_code == 2
    assert invoke("unknown").exit_code == 2


def test_an_error_of_recengine_is_one_line_and_exit_1(data):
    result = invoke("recommend", "--user", "9", "--data", data)
    assert result.exit_code == 1
    assert result.stderr == "error: [user] 9 is not in the data set 'tiny'\n"


def test_recommend_says_that_no_server_is_there(data):
    result = invoke("recommend", "--user", "7", "--data", data, "--url", "127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: [recommend] UNAVAILABLE: failed to connect")
    assert result.stderr.count("\n") == 1


def test_compile_names_the_missing_manifest(tmp_path):
    result = invoke("compile", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "manifest.json: no such file; is this a bundle?" in result.stderr


@pytest.fixture
def plays(tmp_path):
    """Interactions, users and items as CSV, with names of their own."""
    tables = {
        "plays": ["listener,artist,weight"]
        + [f"{user},{(user + step) % 9},2" for user in range(30) for step in range(5)],
        "listeners": ["listener,country", *(f"{user},{'AB'[user % 2]}" for user in range(30))],
        "artists": ["artist,style,length", *(f"{item},{item % 3},{item}.5" for item in range(9))],
    }
    for name, lines in tables.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return [tmp_path / f"{name}.csv" for name in tables]


NAMES = ("--columns", "user=listener,item=artist,time=")


def test_train_takes_names_of_columns_and_tables_of_features(plays, tmp_path):
    data, users, items = plays
    out = tmp_path / "checkpoint"
    tables = ("--users", users, "--items", items, "--strings", "artist")
    result = invoke("train", data, "--out", out, "--max-epochs", "1", *NAMES, *tables)
    assert result.exit_code == 0, result.output
    recommender = checkpoint.load(out)
    assert {spec.name for spec in recommender.features} == {"user_id", "history", "country"}
    assert {spec.name for spec in recommender.item_features} == {"item_id", "style"}
    assert recommender.item_dense.shape == (9, 1)
    assert set(recommender.item_keys) == {hash_key(str(item)) for item in range(9)}


@pytest.mark.parametrize("out", ["file", "/proc/no/checkpoint"])
def test_train_refuses_before_it_fits_to_write_where_it_cannot(plays, tmp_path, out, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(train, "fit_retrieval", None)
    result = invoke("train", plays[0], "--out", tmp_path / out, *NAMES)
    assert result.exit_code == 1
    reason = r"(Not a directory|No such file or directory)"
    assert re.fullmatch(rf"error: {tmp_path / out}: {reason}\n", result.stderr)


@pytest.mark.parametrize("out", ["file", "/proc/no/models"])
def test_compile_names_what_it_cannot_write(golden, tmp_path, out):
    (tmp_path / "file").touch()
    result = invoke("compile", golden, "--out", tmp_path / out)
    assert result.exit_code == 1
    assert re.fullmatch(rf"error: (/proc/no|{tmp_path}/file): [A-Z].*\n", result.stderr)


def test_train_says_what_it_fits_and_shows_no_bar_where_no_terminal_is(plays, tmp_path):
    result = invoke("train", plays[0], "--out", tmp_path / "out", "--max-epochs", "1", *NAMES)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == ["fitting retrieval", "fitting ranking"]
    assert "Epoch" not in result.output


def test_the_table_of_quality_says_which_baseline_is_left_out(capsys):
    rows = [("popularity", {"ndcg@10": 0.1}), ("item-kNN", {"ndcg@10": 0.2})]
    show.quality("large", None, rows)
    assert "left out" not in capsys.readouterr().out
    show.quality("large", None, rows[:1])
    assert "item-kNN is left out of catalogs above 20,000 items" in capsys.readouterr().out


def test_what_is_printed_says_on_which_split_it_was_measured(plays, tmp_path):
    made = {name: tmp_path / name for name in ("checkpoint", "bundle", "repository")}
    split = ("--split", "time-ratio:0.6,0.2,0.2", "--max-epochs", "1")
    held_out = "held-out users of time-ratio:0.6,0.2,0.2"
    for command in (
        ("train", plays[0], "--out", made["checkpoint"], *split, *NAMES),
        ("evaluate", made["checkpoint"]),
        ("export", made["checkpoint"], "--out", made["bundle"]),
        ("evaluate", made["bundle"]),
        ("compile", made["bundle"], "--out", made["repository"]),
        ("evaluate", made["repository"]),
    ):
        result = invoke(*command)
        assert result.exit_code == 0, result.output
        assert (held_out in result.stdout) == (command[0] != "export")


def test_train_refuses_a_split_that_there_is_not_before_it_reads(plays):
    result = invoke("train", plays[0], "--split", "random")
    assert result.exit_code == 2
    assert "expected leave-last-out" in result.output


@pytest.mark.parametrize("names", ["usr=listener", "user", "user=", "user=listener,user=artist"])
def test_train_refuses_names_of_no_column(plays, names):
    result = invoke("train", plays[0], "--columns", names)
    assert result.exit_code == 2
    assert "expected user=NAME" in result.output


def test_train_refuses_tables_that_a_format_does_not_take(data, plays):
    result = invoke("train", data, "--users", plays[1])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: [read] users: recbole takes none")


@pytest.fixture
def golden_data(golden, tmp_path):
    """A data set whose items are those of the golden bundle."""
    items = load_tensor(golden, read_manifest(golden).retrieval.index.keys).tolist()
    taken = [f"103\t{item}\t{time}" for time, item in enumerate(items[4:9])]
    titles = [f"{item}\tMovie {row}\tDrama" for row, item in enumerate(items)]
    tables = {
        "inter": ["user_id:token\titem_id:token\ttimestamp:float", *taken],
        "item": ["item_id:token\tmovie_title:token_seq\tgenre:token_seq", *titles],
        "user": ["user_id:token\tage:float\tactivity:float", "103\t0.5\t1.0"],
    }
    folder = tmp_path / "golden"
    folder.mkdir()
    for kind, lines in tables.items():
        (folder / f"golden.{kind}").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def golden_tables(golden_data):
    """The same as CSV, with names of its own; options of the command line that say how."""
    for kind, names in (
        ("inter", "viewer,film,at"),
        ("item", "film,name,genre"),
        ("user", "viewer,age,activity"),
    ):
        _, *rows = (golden_data / f"golden.{kind}").read_text().splitlines()
        lines = [names, *(row.replace("\t", ",") for row in rows)]
        (golden_data / f"{kind}.csv").write_text("\n".join(lines) + "\n")
    return [
        *("--data", golden_data / "inter.csv", "--columns", "user=viewer,item=film,time=at"),
        *("--users", golden_data / "user.csv", "--items", golden_data / "item.csv"),
    ]


@pytest.mark.parametrize("stored", ["recbole", "tables"])
def test_recommend_shows_titles_beside_the_history(
    golden_server, golden_data, golden_tables, stored
):
    url = golden_server.endpoints.grpc
    result = invoke(
        *("recommend", "--user", "103"),
        *(("--data", golden_data) if stored == "recbole" else golden_tables),
        *("--url", url, "-k", "3", "--timeout", "10"),
    )
    assert result.exit_code == 0, result.stderr
    assert "for user 103" in result.stdout
    titles = re.findall(r"Movie (\d+)", result.stdout)
    assert len(titles) == 6  # three recommended, three of the history
    assert {"8", "7", "6"} <= set(titles)  # the newest of the history
    assert not {"4", "5"} & set(titles)  # what was taken is not recommended again


@pytest.fixture
def serving(golden_repository, tmp_path):
    """Runs `recengine serve` over an own copy of a repository; its endpoints once it is ready."""
    repository = shutil.copytree(golden_repository, tmp_path / "repository")
    command = [sys.executable, "-c", "from recengine.cli import app; app()", "serve", repository]
    ports = [f"--{kind}-port=0" for kind in ("grpc", "http", "metrics")]
    log = tmp_path / "log"

    @contextmanager
    def serve(*arguments):
        with (
            log.open("w") as sink,
            subprocess.Popen(
                [*command, *ports, *arguments], stdout=subprocess.PIPE, stderr=sink, text=True
            ) as process,
        ):
            try:
                ready = process.stdout.readline()
                endpoints = re.match(r"ready: grpc (\S+), http (\S+), metrics (\S+)", ready)
                assert endpoints, log.read_text()
                yield repository, *endpoints.groups()
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0, log.read_text()

    return serve


def test_serve_prints_its_endpoints_and_ends_on_sigterm(serving):
    with serving() as (_, grpc, _, _), RecommenderClient(grpc) as client:
        assert client.ready(timeout=10)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGSEGV, "error: [serve] tritonserver ended by signal 11 (SIGSEGV)"),
        (
            signal.SIGBUS,
            "error: [serve] tritonserver ended by signal 7 (SIGBUS); "
            "was a served file changed in place?",
        ),
    ],
)
def test_serve_says_by_which_signal_the_server_died(golden_repository, monkeypatch, number, said):
    def wait(server, begun):
        os.kill(server.pid, number)
        return original(server, begun)

    original = TritonServer.wait
    monkeypatch.setattr(TritonServer, "wait", wait)
    ports = [f"--{kind}-port=0" for kind in ("grpc", "http", "metrics")]
    result = invoke("serve", golden_repository, *ports)
    assert result.exit_code == 128 + number
    assert result.stderr.splitlines()[-1] == said


def test_serve_passes_on_what_stands_after_two_dashes(serving, tmp_path):
    with serving("--", "--backend-config=recengine,threads=1", "--log-verbose=1"):
        log = (tmp_path / "log").read_text()
    assert re.search(r"recengine: \w+, 1 threads", log)


def test_serve_with_explicit_model_control_takes_what_compile_adds_and_loses_nothing(
    serving, golden
):
    def load(http, model):
        url = f"http://{http}/v2/repository/models/{model}/load"
        urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=30).close()

    user = {"user_id": 101, "age": 0.5, "activity": 1.0}
    with (
        serving("--model-control", "explicit") as (repository, grpc, http, _),
        RecommenderClient(grpc, timeout=20) as client,
        InferenceServerClient(grpc) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        stop = threading.Event()

        def ask():
            answers = 0
            while not stop.is_set():
                assert client.recommend(user).item_ids.size
                answers += 1
            return answers

        asking = pool.submit(ask)
        try:
            compile_bundle(golden, repository)
            load(http, "recommend")  # with the models that it consists of
        finally:
            stop.set()
        assert asking.result() > 0
        for model in ("retrieval", "ranking", "recommend"):
            assert server.is_model_ready(model, "2")
            assert not server.is_model_ready(model, "1")


def test_serve_gives_up_after_the_time_it_was_given(golden_repository):
    ports = [f"--{kind}-port=0" for kind in ("grpc", "http", "metrics")]
    result = invoke("serve", golden_repository, *ports, "--ready-timeout", "0")
    assert result.exit_code == 1
    assert "error: [serve] tritonserver was not ready within 0 s" in result.stderr


@pytest.mark.parametrize("of_the_wheel", [True, False])
def test_serve_warns_of_the_server_of_the_wheel(golden_repository, tmp_path, of_the_wheel):
    wheel = wheel_tritonserver()
    if wheel is None:
        pytest.skip("needs nvidia-pytriton")
    other = tmp_path / "tritonserver"
    other.write_text(f'#!/bin/sh\nexec "{wheel}" "$@"\n')
    other.chmod(0o755)
    ports = [f"--{kind}-port=0" for kind in ("grpc", "http", "metrics")]
    binary = wheel if of_the_wheel else other
    result = invoke(
        *("serve", golden_repository, *ports, "--tritonserver", binary, "--ready-timeout", "0")
    )
    warnings = [line for line in result.stderr.splitlines() if line.startswith("WARNING [serve]")]
    assert len(warnings) == of_the_wheel
    assert all("nvidia-pytriton (24.10), for development and tests only" in w for w in warnings)


@pytest.mark.parametrize("options", [(), ("--model-control", "explicit")])
def test_serve_refuses_what_is_no_repository(golden, tmp_path, options):
    ports = [f"--{kind}-port=0" for kind in ("grpc", "http", "metrics")]
    options = (*ports, *options, "--ready-timeout", "0")
    result = invoke("serve", golden, *options)
    assert result.exit_code == 1
    assert f"found a bundle; compile it first: recengine compile {golden}" in result.stderr
    result = invoke("serve", tmp_path, *options)
    assert result.exit_code == 1
    # With explicit control, models may come later: then it is the time that was too short.
    expected = "was not ready within 0 s" if "explicit" in options else f"{tmp_path}: expected a"
    assert expected in result.stderr


def test_serve_refuses_a_port_that_is_none(golden_repository):
    result = invoke("serve", golden_repository, "--grpc-port", "99999")
    assert result.exit_code == 2
    assert "65535" in result.stderr


def test_serve_refuses_a_port_that_is_taken(golden_repository, golden_server):
    port = golden_server.endpoints.grpc.rpartition(":")[2]
    result = invoke("serve", golden_repository, "--grpc-port", port)
    assert result.exit_code == 1
    assert f"error: [serve] grpc port {port} of 127.0.0.1: " in result.stderr


def test_evaluate_compares_the_served_answers_with_the_reference(golden_server, golden):
    result = invoke("evaluate", golden, "--url", golden_server.endpoints.grpc)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"retrieval +│ served +│ 20", result.stdout)
    assert re.search(r"recommend +│ served +│ 20", result.stdout)


def test_evaluate_says_that_a_server_has_another_model_than_the_bundle(
    golden_server, golden, tmp_path
):
    other = shutil.copytree(golden, tmp_path / "other")
    manifest = read_manifest(other)
    retrieval = manifest.retrieval.model_copy(update={"num_candidates": 7})
    write_manifest(other, manifest.model_copy(update={"name": "films", "retrieval": retrieval}))
    url = golden_server.endpoints.grpc
    result = invoke("evaluate", other, "--url", url)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: [evaluate] {url} serves the model 'golden', but {other} is 'films': "
        "their schemas differ in name, num_candidates\n"
    )


def test_evaluate_shows_what_compile_measured(golden_repository):
    result = invoke("evaluate", golden_repository)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"recommend +│ engine +│ 20", result.stdout)


def test_compile_prints_the_fidelity_table(golden, tmp_path):
    result = invoke("compile", golden, "--out", tmp_path / "models")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"recommend +│ engine +│ 20", result.stdout)
    assert (tmp_path / "models" / "recommend" / "config.pbtxt").exists()


@pytest.mark.parametrize("flag", [("--precision", "fp16"), ("--tf32",), ("--usual-batch", "8")])
def test_how_plans_are_built_is_for_the_target_gpu_alone(golden, tmp_path, flag):
    result = invoke("compile", golden, "--out", tmp_path / "models", *flag)
    assert result.exit_code == 2
    assert "only the target gpu takes" in result.output
    assert not (tmp_path / "models").exists()


def test_serve_refuses_plans_that_were_built_for_another_machine(tmp_path):
    version = tmp_path / "ranker" / "1"
    version.mkdir(parents=True)
    (version / "model.plan").write_bytes(b"a plan")
    (version / "plan.json").write_text("{}")
    result = invoke("serve", tmp_path)
    assert result.exit_code == 1
    assert "ranker/1/plan.json: Field required" in result.output


def test_compile_for_a_stock_backend_says_where_to_serve_it_and_serve_refuses_a_server_without(
    golden, tmp_path
):
    models = tmp_path / "models"
    result = invoke("compile", golden, "--target", "onnxruntime", "--out", models)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"recommend +│ engine +│ 20", result.stdout)
    assert re.search(rf"docker run .*--volume={models}:/models:ro .*tritonserver", result.stdout)
    result = invoke("serve", models, "--grpc-port=0", "--http-port=0", "--metrics-port=0")
    assert result.exit_code == 1
    assert "error: [serve] model ranker needs the backend onnxruntime: not in" in result.stderr
    assert "docker run" in result.stderr


DATASET = Dataset(
    name="test",
    interactions=Interactions(
        users=np.array([7, 8, 7]), items=np.array([1, 1, 2]), times=np.array([1, 2, 3])
    ),
    users=FeatureTable(
        ids=np.array([7, 8]),
        sparse={"gender": Ragged.of([[3], []])},
        dense={"age": np.array([20, np.nan], np.float32)},
    ),
    items=FeatureTable(
        ids=np.array([1, 2]),
        text={"movie_title": ["Toy Story", ""], "genres": ["Comedy", "Crime"]},
    ),
)


def test_a_catalog_gives_features_as_training_names_them():
    features = Catalog(DATASET).features(7)
    assert set(features) == {"user_id", "history", "gender", "age"}
    assert (features["user_id"], features["history"], features["age"]) == (7, [1, 2], 20.0)
    assert features["gender"].tolist() == [3]


def schema_of(*, hashed):
    return Schema(
        "test",
        (Feature("history", 9, hashed), Feature("gender", 1, hashed)),
        *(("age",), 2, 2, 2, 2),
        hashed_items=hashed,
        dense_defaults={"age": 30.0},
    )


def test_a_catalog_packs_ids_of_strings_as_the_hashes_that_they_are():
    a, b, f = (hash_key(key) for key in "abf")
    dataset = replace(
        DATASET,
        interactions=replace(DATASET.interactions, items=np.array([a, a, b])),
        users=replace(DATASET.users, sparse={"gender": Ragged.of([[f], []])}),
        items=FeatureTable(ids=np.sort([a, b])),
    )
    wire = Catalog(dataset).pack(schema_of(hashed=True), [7, 8])
    assert wire.ids.tolist() == [[a, b, f, a, b], [a, a, -1, -1, -1]]
    assert wire.lengths.tolist() == [[2, 1, 2], [1, 0, 1]]
    assert wire.dense.tolist() == [[20], [30]]


def test_a_catalog_of_numbers_is_refused_where_the_model_knows_strings():
    assert Catalog(DATASET).pack(schema_of(hashed=False), [7]).ids.tolist() == [[1, 2, 3, 1, 2]]
    with pytest.raises(InputError, match=r"'history': expected strings, which the schema hashes"):
        Catalog(DATASET).pack(schema_of(hashed=True), [7])


def test_a_catalog_leaves_out_an_unknown_number():
    features = Catalog(DATASET).features(8)
    assert "age" not in features
    assert features["gender"].tolist() == []


def test_a_catalog_shows_the_id_where_there_is_no_title():
    catalog = Catalog(DATASET)
    assert (catalog.title(1), catalog.genres(1)) == ("Toy Story", "Comedy")
    assert (catalog.title(2), catalog.title(99), catalog.genres(99)) == ("2", "99", "")


def test_a_catalog_shows_the_key_of_an_item_that_has_no_title():
    ids = np.sort([hash_key("B1"), hash_key("B2")])
    keys = sorted(["B1", "B2"], key=hash_key)
    items = FeatureTable(ids, text={"title": ["", "Heat"]}, keys=keys)
    catalog = Catalog(replace(DATASET, items=items, hashed_items=True))
    assert [catalog.title(item) for item in ids.tolist()] == [keys[0], "Heat"]


def test_a_catalog_hashes_user_ids_that_are_strings():
    user = hash_key("ann")
    table = FeatureTable(ids=np.array([user]))
    interactions = Interactions(np.array([user]), np.array([1]), np.array([1]))
    dataset = Dataset("test", interactions, table, FeatureTable(np.array([1])), hashed_users=True)
    assert Catalog(dataset).user_id("ann") == user
    with pytest.raises(InputError, match="bob is not in the data set"):
        Catalog(dataset).user_id("bob")
    with pytest.raises(InputError, match="expected a number, found 'ann'"):
        Catalog(DATASET).user_id("ann")
