"""The serving bench: its requests, its readers, its arithmetic, and one short run on a server."""

import gc
import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from tritonclient.grpc import service_pb2

from bench.serving import identity, synthetic
from bench.serving.compare import compare_answers
from recengine import bundle
from recengine.client.wire import WireUsers
from recengine.engine import Engine
from recengine.errors import InputError, ServerError
from recengine.serving.bench import overload
from recengine.serving.bench.machine import machine_name
from recengine.serving.bench.open_loop import (
    Answers,
    poisson_arrivals,
    send,
    send_one_by_one,
    serialize,
)
from recengine.serving.bench.overload import (
    OverloadPlan,
    count_sheds,
    describe_burst,
    measure_overload,
    overload_bars,
    overload_table,
    summarize_bursts,
)
from recengine.serving.bench.perf_analyzer import (
    Windows,
    find_perf_analyzer,
    measure,
    measure_rate,
    median_point,
    read_report,
)
from recengine.serving.bench.report import (
    Bar,
    bars_table,
    plot_overload,
    plot_serving,
    serving_table,
)
from recengine.serving.bench.requests import draw_requests, reference_requests, write_input_data
from recengine.serving.server import TritonServer

# Written by perf_analyzer 2.49 with --verbose-csv over two concurrencies.
REPORT = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute \
Input,Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,\
p99 latency,Avg latency,request/response,response wait
1,6098.68,1,71,28,0,39,0,0,125,197,218,263,141,1,138
2,6926.12,1,150,63,0,34,0,0,221,326,369,525,250,1,247
"""


def answers(latency_ms, outcome):
    count = len(latency_ms)
    return Answers(
        np.arange(count, dtype=float), np.array(latency_ms), np.array(outcome), "", 1.0, 0.25
    )


def test_report_of_perf_analyzer_is_read_by_column_name():
    first, second = read_report(REPORT)
    assert (first.concurrency, first.throughput, first.p99_us) == (1, 6098.68, 263)
    assert (second.mean_us, second.queue_us, second.compute_infer_us) == (250, 63, 34)


def test_rows_of_an_ensembles_models_are_left_out():
    composing = "\nModel: retrieval,\nConcurrency,Inferences/Second\n1,5\n"
    assert read_report(REPORT + composing) == read_report(REPORT)


def test_report_without_a_table_is_an_error():
    with pytest.raises(ServerError, match="Concurrency"):
        read_report("Model: recommend\n")


def test_median_is_taken_number_by_number():
    first, second = read_report(REPORT)
    assert median_point([first, second, second]) == second
    assert median_point([first, second]).p50_us == (125 + 221) / 2


def test_perf_analyzer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        find_perf_analyzer(tmp_path / "perf_analyzer")


def test_reference_requests_are_the_held_out_users(golden):
    expected = load_file(golden / "reference.safetensors")
    requests = reference_requests(golden)
    assert len(requests) == len(expected["lengths"])
    for user, request in enumerate(requests):
        width = expected["lengths"][user].sum()
        np.testing.assert_array_equal(request.ids, expected["ids"][user, :width])
        np.testing.assert_array_equal(request.dense, expected["dense"][user])


@pytest.mark.parametrize("distribution", ["zipf", "uniform"])
def test_drawn_ids_are_known_and_lengths_are_those_of_the_held_out_users(golden, distribution):
    manifest = bundle.read_manifest(golden)
    known = set(bundle.load_tensor(golden, manifest.retrieval.index.keys).tolist())
    real = {tuple(request.lengths) for request in reference_requests(golden)}
    for request in draw_requests(golden, 100, distribution):
        user_id, history, country, excluded = np.split(request.ids, np.cumsum(request.lengths)[:-1])
        assert 100 <= user_id.item() < 120
        assert set(history.tolist()) | set(excluded.tolist()) <= known
        assert country.size == 1
        assert tuple(request.lengths) in real


def test_zipf_repeats_some_items_much_more_often_than_uniform(tmp_path):
    directory = tmp_path / "bundle"
    synthetic.write(directory, synthetic.Size(items=1000, users=10, candidates=5, hidden=(8, 4)))

    def most_common(distribution):
        ids = np.concatenate([r.ids[1:] for r in draw_requests(directory, 400, distribution)])
        return np.unique(ids, return_counts=True)[1].max() / len(ids)

    assert most_common("zipf") > 20 * most_common("uniform")


def test_drawing_twice_gives_the_same_requests(golden):
    first, second = (draw_requests(golden, 8, "zipf", seed=3) for _ in range(2))
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(first, second, strict=True))


def test_input_data_has_content_and_shape_of_every_tensor(golden, tmp_path):
    requests = reference_requests(golden)[:3]
    write_input_data(tmp_path / "data.json", requests)
    rows = json.loads((tmp_path / "data.json").read_text())["data"]
    assert [row["ids"]["content"] for row in rows] == [r.ids.tolist() for r in requests]
    assert rows[0]["lengths"]["shape"] == [4]
    assert rows[0]["dense"]["shape"] == [2]


def test_deadline_travels_as_the_request_timeout_in_microseconds(golden):
    (timed,) = serialize("recommend", reference_requests(golden)[:1], 50)
    message = service_pb2.ModelInferRequest.FromString(timed)
    assert message.parameters["timeout"].int64_param == 50_000
    assert [tensor.name for tensor in message.inputs] == ["ids", "lengths", "dense"]
    (plain,) = serialize("recommend", reference_requests(golden)[:1], None)
    assert not service_pb2.ModelInferRequest.FromString(plain).parameters


def test_poisson_arrivals_have_the_rate_asked_for():
    times = poisson_arrivals(rate=500, seconds=20)
    assert (np.diff(times) >= 0).all()
    assert times[-1] < 20
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert np.diff(times).std() == pytest.approx(1 / 500, rel=0.05)


def test_burst_counts_late_answers_apart_from_good_ones():
    plan = OverloadPlan(seconds=2, deadline_ms=50)
    burst = describe_burst(
        4,
        10,
        answers([10, 60, 1, 20, 3], ["ok", "ok", "shed", "ok", "shed"]),
        answers([12, 11], ["ok", "ok"]),
        2,
        plan,
    )
    assert (burst["good_per_s"], burst["late_per_s"], burst["shed"]) == (1, 0.5, 2)
    assert burst["of_capacity"] == 0.1
    assert (burst["shed_p50_ms"], burst["next_ms"], burst["next_20_max_ms"]) == (2, 12, 12)


def test_bursts_of_one_load_become_their_median_and_all_their_sheds():
    plan = OverloadPlan(seconds=1, deadline_ms=50)
    runs = [
        describe_burst(
            4, 10, answers([1] * (n + 1), ["ok"] * n + ["shed"]), answers([n], ["ok"]), 1, plan
        )
        for n in (8, 2, 5)
    ]
    found = summarize_bursts(runs)
    assert (found["load"], found["of_capacity"], found["good_per_s"]) == (4, 0.5, 5)
    assert (found["shed"], found["shed_miscounted"], found["next_ms"]) == (3, 0, 8)
    assert found["shed_p50_ms"] == 1


def test_a_burst_without_sheds_has_no_latency_of_them_and_a_shed_next_request_is_not_fast():
    plan = OverloadPlan(seconds=1, deadline_ms=50)
    calm = describe_burst(1, 10, answers([1], ["ok"]), answers([2], ["ok"]), 0, plan)
    shed = describe_burst(1, 10, answers([3], ["shed"]), answers([2], ["shed"]), 2, plan)
    found = summarize_bursts([calm, shed])
    assert (found["shed_p50_ms"], found["next_ms"]) == (3, np.inf)


def test_bars_of_overload_name_what_was_missed(tmp_path):
    plan = OverloadPlan(loads=(4,), seconds=1, deadline_ms=50)
    kept = answers([10] * 100 + [1] * 300, ["ok"] * 100 + ["shed"] * 300)
    burst = describe_burst(4, 100, kept, answers([12], ["ok"]), 299, plan)
    result = {"capacity": 100, "deadline_ms": 50, "idle_p99_ms": 10, "bursts": [burst]}
    missed = [bar.name for bar in overload_bars(result) if not bar.met]
    assert missed == ["sheds that client and server count differently"]
    assert "| 4× | 400 | 100.0 | 100.0% |" in overload_table(result)
    plot_overload(tmp_path / "overload.png", result["bursts"], {**result, "machine": {"cpu": "a"}})
    assert (tmp_path / "overload.png").stat().st_size > 10_000


def test_bars_say_met_or_missed():
    rate, latency = Bar("rate", 5, 5.5, at_least=True), Bar("p99", 0.3, 0.5, at_least=False)
    assert str(rate) == "rate: 5.5, bar ≥ 5: met"
    assert "| p99 | 0.5 | ≤ 0.3 | **missed** |" in bars_table([rate, latency])


def test_table_and_plot_hold_every_point(tmp_path):
    series = {"recommend": read_report(REPORT)}
    assert "| recommend | 2 | 6,926 | 0.22 | 0.33 | 0.37 | 0.53 | 0.06 | 0.03 |" in serving_table(
        series
    )
    plot_serving(tmp_path / "plot.png", series, "title")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_machine_name_is_a_file_name():
    assert machine_name().replace("-", "").isalnum()


def test_answers_that_swap_near_ties_are_the_same():
    ours = np.array([[1, 2, 3]]), np.float32([[0.9, 0.50001, 0.5]])
    swapped = np.array([[1, 3, 2]]), np.float32([[0.9, 0.50002, 0.5]])
    other = np.array([[1, 4, 3]]), np.float32([[0.9, 0.7, 0.5]])
    padded = np.array([[1, -1, -1]]), np.float32([[0.9, -np.inf, -np.inf]])
    near = compare_answers(ours, swapped)
    assert (near.identical, near.same) == (0, 1)
    assert compare_answers(ours, other).same == 0
    assert compare_answers(padded, padded).score_error == 0


def test_synthetic_bundle_is_a_valid_bundle(tmp_path):
    directory = tmp_path / "bundle"
    size = synthetic.Size(items=50, users=5, dim=8, candidates=10, hidden=(16, 8))
    synthetic.write(directory, size)
    manifest = bundle.verify(directory)
    assert manifest.retrieval.index.rows == 50
    vectors = bundle.load_tensor(directory, manifest.retrieval.index.vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_open_loop_gets_every_answer_of_a_live_server(golden, golden_server):
    messages = serialize("recommend", reference_requests(golden), 5000)
    before = count_sheds(golden_server.endpoints.metrics)
    result = send(golden_server.endpoints.grpc, messages, poisson_arrivals(50, 1))
    assert result.first_failure == ""
    assert len(result.latencies_ms("ok")) + len(result.latencies_ms("shed")) == len(result.due_s)
    shed = count_sheds(golden_server.endpoints.metrics) - before
    assert shed == len(result.latencies_ms("shed"))


def test_no_garbage_is_collected_while_answers_are_timed(golden, golden_server, monkeypatch):
    collects = []

    def watched(call):
        def run(*arguments):
            answers = call(*arguments)
            collects.append(gc.isenabled())
            return answers

        return run

    monkeypatch.setattr(overload, "send", watched(send))
    monkeypatch.setattr(overload, "send_one_by_one", watched(send_one_by_one))
    measure_overload(
        golden_server.endpoints.grpc,
        golden_server.endpoints.metrics,
        "recommend",
        reference_requests(golden),
        OverloadPlan(loads=(0.1,), seconds=0.3, rounds=1, deadline_ms=5000),
        progress=lambda text: None,
    )
    first, *timed = collects
    assert first  # what warms up
    assert len(timed) > 4
    assert not any(timed)
    assert gc.isenabled()


@pytest.mark.alone
def test_perf_analyzer_measures_a_live_server(golden, golden_server, tmp_path):
    write_input_data(tmp_path / "data.json", draw_requests(golden, 64, "zipf"))
    point = measure(
        find_perf_analyzer(),
        golden_server.endpoints.grpc,
        "recommend",
        tmp_path / "data.json",
        concurrency=2,
        windows=Windows(milliseconds=300, count=3),
    )
    assert point.concurrency == 2
    assert point.throughput > 10
    assert 0 < point.p50_us <= point.p99_us


@pytest.mark.alone
def test_perf_analyzer_sends_at_a_rate(golden, golden_server, tmp_path):
    data = tmp_path / "requests.json"
    write_input_data(data, draw_requests(golden, 20, "uniform"))
    url, windows = golden_server.endpoints.grpc, Windows(300)
    point = measure_rate(find_perf_analyzer(), url, "recommend", data, 200, windows)
    assert point.concurrency == 0
    assert 100 < point.throughput < 300
    assert 0 < point.p50_us <= point.p99_us
    with pytest.raises(ServerError, match=r"nowhere at 200\.0"):
        measure_rate(find_perf_analyzer(), url, "nowhere", data, 200, windows)


@pytest.mark.parametrize("row_type", ["int8", "int4"])
def test_synthetic_bundle_in_other_row_types_serves(tmp_path, row_type):
    directory = tmp_path / "bundle"
    if row_type == "int4":
        with pytest.raises(InputError, match="expected fp32 or int8, found int4"):
            synthetic.write(directory, synthetic.Size(items=9, users=9, row_type=row_type))
        return
    size = synthetic.Size(items=300, users=10, candidates=5, hidden=(8, 4), row_type=row_type)
    assert synthetic.write(directory, size).tables["user"].row_type == "int8"
    users = WireUsers(np.array([[3, 7, 8]]), np.array([[1, 2, 0]], np.int32), None)
    items, scores = Engine(directory).recommend(users, k=3)
    assert len(set(items[0].tolist())) == 3
    assert np.isfinite(scores).all()


def test_floor_answers_what_it_was_sent(tmp_path):
    from tritonclient.grpc import InferenceServerClient, InferInput

    repository = identity.write_repository(tmp_path / "floor")
    with TritonServer(repository, log=tmp_path / "log") as server:
        sent = np.arange(7, dtype=np.int64)[None]
        tensor = InferInput("x", sent.shape, "INT64").set_data_from_numpy(sent)
        with InferenceServerClient(server.endpoints.grpc) as client:
            np.testing.assert_array_equal(
                client.infer(identity.MODEL, [tensor]).as_numpy("y"), sent
            )
