"""A real Prometheus that scrapes what a test serves, with the configuration, rules and dashboard of deploy/."""

import json
import math
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

START_S_MAX = 30.0
STOP_S_MAX = 10.0
SCRAPE_INTERVAL = "500ms"
RATE_INTERVAL = "5s"
DATA_S_MAX = 30.0
ALL = ".*"


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """Return the `data` of an answer of the HTTP API."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=10) as response:
            return json.load(response)["data"]

    def values(self, expression: str) -> list[float]:
        """Return the values of an instant query."""
        return [float(sample["value"][1]) for sample in self.get("query", query=expression)["result"]]


class Scraper:
    """Starts a Prometheus for an address."""

    def __init__(self, rules: Path, folder: Path) -> None:
        self._configuration = rules / "prometheus.yml"
        self._folder = folder

    @contextmanager
    def scrape(self, address: str) -> Iterator[Prometheus]:
        """Run a Prometheus whose only target is `address`."""
        binary = shutil.which("prometheus")
        assert binary, "there is no `prometheus` on the PATH: install Debian's package of that name"
        prometheus = Prometheus(f"http://127.0.0.1:{free_port()}")
        log = self._folder / "prometheus.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    binary,
                    f"--config.file={self._configure(address)}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address={prometheus.url.removeprefix('http://')}",
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                wait_until_ready(process, prometheus, log)
                yield prometheus
            finally:
                process.terminate()
                process.wait(STOP_S_MAX)

    def _configure(self, address: str) -> Path:
        yaml = YAML()
        configuration = yaml.load(self._configuration)
        configuration["global"].update(scrape_interval=SCRAPE_INTERVAL, evaluation_interval=SCRAPE_INTERVAL)
        configuration["rule_files"] = [str(self._configuration.parent / name) for name in configuration["rule_files"]]
        configuration["scrape_configs"][0]["static_configs"][0]["targets"] = [address]
        path = self._folder / "prometheus.yml"
        yaml.dump(configuration, path)
        return path


class Dashboard:
    """The expressions of the dashboard and of the rules, ready for a Prometheus."""

    def __init__(self, content: Mapping[str, Any], rules: Mapping[str, Any]) -> None:
        self.panels = [panel for panel in content["panels"] if panel["type"] != "row"]
        self.variables: dict[str, str] = {
            variable["name"]: variable["query"]["query"]
            for variable in content["templating"]["list"]
            if variable["type"] == "query"
        }
        self._rules = rules

    def expressions(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """Return every panel's expressions, by title and letter, with the variables as `chosen`."""
        return {
            f"{panel['title']} {target['refId']}": substitute(target["expr"], chosen)
            for panel in self.panels
            for target in panel["targets"]
        }

    def rules(self) -> dict[str, str]:
        """Return what each rule looks at: a recording rule's record, an alert's expression without its threshold."""
        looked_at = {}
        for rule in (rule for group in self._rules["groups"] for rule in group["rules"]):
            if "record" in rule:
                looked_at[rule["record"]] = rule["record"]
            else:
                looked_at[rule["alert"]] = re.sub(r" (==|>) [\d.]+$", "", rule["expr"].strip())
        return looked_at

    def offered(self, prometheus: Prometheus, variable: str) -> list[str]:
        """Return the values that Grafana offers for a variable, everything else being chosen."""
        query = substitute(self.variables[variable], dict.fromkeys(self.variables, ALL))
        match = re.fullmatch(r"label_values\((?P<series>.+), (?P<label>\w+)\)", query)
        assert match, f"${variable} is not a query for label values: {query}"
        return list(prometheus.get(f"label/{match['label']}/values", **{"match[]": match["series"]}))

    def check(self, prometheus: Prometheus) -> None:
        """Fail unless every variable has values, and every expression has data, for all values and for each one."""
        everything = dict.fromkeys(self.variables, ALL)
        wait_for_data(prometheus, {**self.expressions(everything), **self.rules()})
        first = {}
        for variable in self.variables:
            offered = self.offered(prometheus, variable)
            assert offered, f"${variable} has no values"
            first[variable] = re.escape(max(offered)).replace("\\", "\\\\")  # for the regex, then for the string
        wait_for_data(prometheus, self.expressions(first))


def substitute(expression: str, chosen: Mapping[str, str]) -> str:
    """Put values in the place of Grafana's variables."""
    for name, value in {**chosen, "__rate_interval": RATE_INTERVAL}.items():
        expression = expression.replace(f"${name}", value)
    assert "$" not in expression, f"an unknown variable: {expression}"
    return expression


def wait_for_data(prometheus: Prometheus, expressions: Mapping[str, str]) -> None:
    """Evaluate until each expression has a value that is a number."""
    waiting = dict(expressions)
    give_up_at = time.monotonic() + DATA_S_MAX
    while waiting and time.monotonic() < give_up_at:
        for name, expression in list(waiting.items()):
            if any(not math.isnan(value) for value in prometheus.values(expression)):
                del waiting[name]
        time.sleep(0.2 if waiting else 0)
    assert not waiting, "no data for\n" + "\n".join(f"{name}: {expression}" for name, expression in waiting.items())


@pytest.fixture(scope="session")
def dashboard(pytestconfig: pytest.Config) -> Dashboard:
    deploy = pytestconfig.rootpath / "deploy"
    rules = YAML(typ="safe").load(deploy / "prometheus" / "rules.yml")
    return Dashboard(json.loads((deploy / "grafana" / "headrace.json").read_text()), rules)


@pytest.fixture
def scraper(pytestconfig: pytest.Config, tmp_path: Path) -> Scraper:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    return Scraper(pytestconfig.rootpath / "deploy" / "prometheus", folder)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until_ready(process: subprocess.Popen[bytes], prometheus: Prometheus, log: Path) -> None:
    give_up_at = time.monotonic() + START_S_MAX
    while time.monotonic() < give_up_at:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{prometheus.url}/-/ready", timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"prometheus did not start:\n{log.read_text()}")
