from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from meshmoe.engine.request import GenerationStats
from tests.api.serving import Served


def scrape(served: Served) -> dict[tuple[str, str], float]:
    with served.client() as client:
        response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_what_prometheus_reads(served: Served) -> None:
    meters = served.service.measured
    for took_s in (0.0004, 0.003, 0.0031, 700.0):
        meters.between_tokens.observe(took_s)
    meters.first_token.observe(0.25)
    meters.add(GenerationStats(completion_tokens=7, prompt_tokens=3, decode_rounds=12, expert_calls_remote=9))
    samples = scrape(served)
    assert samples["meshmoe_tokens_total", "completion"] == 7
    assert samples["meshmoe_tokens_total", "prompt"] == 3
    assert samples["meshmoe_rounds_total", "decode"] == 12
    assert samples["meshmoe_expert_calls_total", "remote"] == 9
    assert samples["meshmoe_inter_token_seconds_bucket", "0.0005"] == 1
    assert samples["meshmoe_inter_token_seconds_bucket", "0.005"] == 3
    assert samples["meshmoe_inter_token_seconds_bucket", "60.0"] == 3
    assert samples["meshmoe_inter_token_seconds_bucket", "+Inf"] == 4
    assert samples["meshmoe_inter_token_seconds_count", ""] == 4
    assert samples["meshmoe_time_to_first_token_seconds_sum", ""] == 0.25
    assert samples["meshmoe_peer_sent_bytes_total", "b-with-a-longer-name"] == 123_456
    assert samples["meshmoe_peer_rtt_seconds", "b-with-a-longer-name"] == 0.00125
    assert samples["meshmoe_nodes", "suspect"] == 1
    assert samples["meshmoe_nodes", "dead"] == 0
    assert samples["meshmoe_experts_covered", ""] == 7
    assert samples["meshmoe_migrations_total", "given"] == 3
    assert samples["meshmoe_faults_total", "timeouts"] == 2
    assert samples["meshmoe_event_loop_late_seconds", ""] == 0.0015
    assert samples["meshmoe_node_info", "edge-12m,a,0.1.0"] == 1
    assert "meshmoe_hit_ratio" not in {name for name, _ in samples}


def test_health(served: Served) -> None:
    with served.client() as client:
        assert client.get("/health").json() == {"status": "ok", "reason": ""}
