"""What is deployed, read against what the code does: the two drift apart in silence otherwise."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from echo_engine import build

from turbosparse.engine.config import EngineConfig
from turbosparse.engine.messages import Activity, RequestTimes, StepStats
from turbosparse.server.metrics import Ended, Metrics
from turbosparse.server.settings import Settings

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
SETTINGS = {f"TURBOSPARSE_{name.upper()}" for name in Settings.__dataclass_fields__}


def every_metric() -> str:
    """The exposition of a server that has done a little of everything."""
    _, info = build(EngineConfig(model="echo"))
    metrics = Metrics("echo", info)
    times = (RequestTimes(0.1, 0.1, 0.1, 2),)
    metrics.step(StepStats(ffn_mode="token", activity=Activity([0.1], [0.2]), ended=times))
    metrics.ended(Ended("id", "echo", 1.0, 2, 3, 1, ["stop"], 0.5))
    metrics.answered("GET", "/health", 200)
    metrics.first_token(0.1)
    metrics.inter_token(0.1, 1)
    return metrics.exposition().decode()


def test_every_series_of_the_dashboard_is_exposed_with_its_labels():
    exposed: dict[str, set[str]] = {}
    for line in every_metric().splitlines():
        if found := re.match(r"(\w+)(?:\{(.*)\})? ", line):
            exposed.setdefault(found[1], set()).update(re.findall(r'(\w+)="', found[2] or ""))
    dashboard = json.loads((DOCKER / "grafana" / "dashboard.json").read_text())
    asked = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    assert len(asked) > 20
    for expression in asked:
        for name, labels in re.findall(r"(\w+_\w+)(?:\{([^}]*)\})?", strip(expression)):
            assert name in exposed, f"{name} in {expression}"
            for label in re.findall(r"(\w+)=", labels):
                assert label in exposed[name], f"{label} of {name}"
        for by in re.findall(r"by \((\w+)\)", expression):
            assert any(by in labels for labels in exposed.values()), by


def strip(expression: str) -> str:
    """Without PromQL's own words."""
    return re.sub(
        r"histogram_quantile|by \(\w+\)|\$__rate_interval|model_name=~\"\$model\",?", "", expression
    )


def test_the_manual_names_every_metric():
    manual = (ROOT / "docs" / "operations.md").read_text()
    names = set(re.findall(r"^# TYPE (turbosparse_\w+)", every_metric(), re.M))
    missing = {n for n in names if not n.endswith("_created") and n not in manual}
    assert not missing


def test_the_manual_names_every_setting():
    manual = (ROOT / "docs" / "operations.md").read_text()
    for name in Settings.__dataclass_fields__:
        assert name == "model" or f"`--{name.replace('_', '-')}`" in manual, name


def test_the_dockerfile_passes_the_linter():
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_parses():
    subprocess.run(["bash", "-n", DOCKER / "try.sh"], check=True)


def test_both_images_run_as_an_unprivileged_user_and_get_signals_themselves():
    for target in ("cpu", "gpu"):
        stage = DOCKERFILE.split(f"AS {target}\n")[1].split("\nFROM ")[0]
        assert stage.rstrip().endswith("USER 10001")
    assert 'ENTRYPOINT ["turbosparse"]' in DOCKERFILE, "a shell would keep the signal"
    assert "HEALTHCHECK" in DOCKERFILE
    assert "curl" not in DOCKERFILE


def test_requirements_are_those_of_the_package():
    command = [sys.executable, DOCKER / "requirements.py", "otel"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert any(line.startswith("torch>=") for line in lines)
    assert any(line.startswith("opentelemetry-sdk") for line in lines)
    assert not any(line.startswith("pytest") for line in lines)


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_compose_waits_for_the_drain_and_opens_no_port_to_the_world():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    targets = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.M))
    for name in ("cpu", "gpu"):
        service = compose["services"][name]
        assert seconds(service["stop_grace_period"]) > Settings().shutdown_timeout
        assert service["build"]["target"] in targets
        assert any(v.startswith("models:") for v in service["volumes"])
        ours = {v for v in service["environment"] if v.startswith("TURBOSPARSE_")}
        assert ours <= SETTINGS
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            path = volume.split(":")[0]
            assert not path.startswith("./") or (DOCKER / path).exists(), path


def test_kubernetes_probes_and_grace():
    documents = yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text())
    [deployment] = [d for d in documents if d["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    environment = {e["name"]: e.get("value") for e in container["env"]}
    assert {n for n in environment if n.startswith("TURBOSPARSE_")} <= SETTINGS
    drain = float(environment["TURBOSPARSE_SHUTDOWN_TIMEOUT"])
    before = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > before + drain
    paths = {
        k: container[f"{k}Probe"]["httpGet"]["path"] for k in ("startup", "readiness", "liveness")
    }
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    assert pod["securityContext"]["runAsNonRoot"]
