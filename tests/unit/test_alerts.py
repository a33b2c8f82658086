"""The alerts for Prometheus speak of metrics that there are."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gateway.telemetry import Metrics

ALERTS = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"


def test_every_metric_of_an_alert_is_exported_with_the_labels_that_it_is_grouped_by() -> None:
    labels = {name: shown for name, shown, _ in Metrics(1).described()}
    text = ALERTS.read_text()
    named = set(re.findall(r"\bswitchyard_\w+", text))
    assert len(named) == 3 and named <= labels.keys()
    for grouped, name in re.findall(r"by \(([^)]*)\) \((switchyard_\w+)\)", text):
        assert grouped == labels[name]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus")
def test_prometheus_takes_the_alerts_and_they_fire_as_they_should() -> None:
    for words in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(["promtool", *words], cwd=ALERTS.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
