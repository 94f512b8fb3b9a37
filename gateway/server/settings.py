"""Settings: one YAML file, overridden by the environment. The only place that reads either.

Each section is the options class of the room it belongs to, so a setting is documented where it is used. An environment
variable is `HEADRACE_` and the path of the field with `__` between its parts: `HEADRACE_STORE__URL=…`. Its value is
taken as it is where the field is a string, and is YAML elsewhere.
"""

import ipaddress
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, DirectoryPath, FilePath, SecretStr, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from featureclient.client import ClientOptions
from featureclient.compute import ComputeOptions
from featureclient.schema import ConfigError, Problem, document
from featureclient.store.opening import StoreOptions
from featureclient.warmup import WarmupOptions
from gateway.inference import InferenceOptions, RepositoryOptions
from gateway.journal.options import JournalOptions
from gateway.monitor.options import MonitorOptions
from gateway.pipeline import PipelineOptions
from gateway.pipeline.shadow_options import ShadowOptions
from gateway.server.http import HttpOptions
from gateway.server.oip.options import OipOptions
from gateway.server.predict import PredictOptions
from gateway.transport import Address, TransportOptions

_ENVIRONMENT = "HEADRACE_"
_TOKEN_LENGTH_MIN = 16


class Settings(BaseModel):
    """Everything that can be set."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    catalogue: FilePath
    """The features.yaml with entities and views."""
    models: DirectoryPath
    """The folder of the model repository."""
    transform_modules: tuple[str, ...] = ()
    """Python modules in which manifests may name transforms. Nothing outside them is imported."""
    transform_path: DirectoryPath | None = None
    """A folder in which these modules are looked for first."""
    experiments: FilePath | None = None
    """The experiments.yaml with splits, canaries and shadows. It is followed: an edit takes effect while the server
    runs, and one that is wrong changes nothing."""
    transport: Literal["fast", "grpcio"] = "fast"
    """How gRPC is spoken: our own layer, or `grpc.aio`."""
    grpc: TransportOptions = TransportOptions()
    http: HttpOptions = HttpOptions()
    store: StoreOptions = StoreOptions()
    features: ClientOptions = ClientOptions()
    compute: ComputeOptions = ComputeOptions()
    warmup: WarmupOptions = WarmupOptions()
    predict: PredictOptions = PredictOptions()
    oip: OipOptions = OipOptions()
    pipeline: PipelineOptions = PipelineOptions()
    shadow: ShadowOptions = ShadowOptions()
    inference: InferenceOptions = InferenceOptions()
    repository: RepositoryOptions = RepositoryOptions()
    journal: JournalOptions = JournalOptions()
    monitor: MonitorOptions = MonitorOptions()
    start_without_store: bool = False
    """Be ready before the feature store has answered once."""
    expose_features: Literal["local", "always", "never"] = "local"
    """Who may read and write features (`return_features`, FeatureService): `local` means everybody as long as the
    server listens on loopback and Unix sockets only."""
    admin_token: SecretStr = SecretStr("")
    """Callers that send it as the metadata `authorization: Bearer <token>` may list, load and unload models, from
    wherever they are. Empty: only callers on a Unix socket, or of a server that listens on loopback alone. At least 16
    characters."""
    stop_grace_s: float = 10.0
    """How long a stop waits for calls in flight, seconds."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stop_grace_s < 0:
            raise ValueError("stop_grace_s must not be negative")
        if 0 < len(self.admin_token.get_secret_value()) < _TOKEN_LENGTH_MIN:
            raise ValueError(f"admin_token must have at least {_TOKEN_LENGTH_MIN} characters")
        if self.journal.enabled and self.journal.sinks and not self.monitor.enabled:
            raise ValueError("journal.sinks are served by the second process, and monitor.enabled is false")
        if self.predict.rows_max > min(self.pipeline.parked_rows_max, self.pipeline.rows_in_flight_max):
            raise ValueError("predict.rows_max must fit into pipeline.parked_rows_max and pipeline.rows_in_flight_max")
        return self

    @property
    def features_exposed(self) -> bool:
        """Whether callers may see and write features."""
        if self.expose_features == "local":
            return self.local
        return self.expose_features == "always"

    @property
    def local(self) -> bool:
        """Whether the server listens on loopback and Unix sockets only."""
        return all(_is_local(address) for address in self.grpc.addresses)


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the file, then the environment, then `overrides` (nested mappings). Raises `ConfigError`."""
    source = document.read(path)
    environment = _Environment(os.environ)
    content = _merge(source.content, environment.content)
    content = _merge(content, overrides or {})
    _resolve(content, path.parent, ("catalogue", "models", "transform_path", "experiments"))
    _resolve_lists(content, path.parent)
    for section, field in (("journal", "path"), ("inference", "engine_cache")):
        if isinstance(content.get(section), dict):
            _resolve(content[section], path.parent, (field,))
    tls = content["grpc"].get("tls") if isinstance(content.get("grpc"), dict) else None
    if isinstance(tls, dict):
        _resolve(tls, path.parent, ("certificate_chain", "private_key", "client_ca"))
    try:
        return document.validate(replace(source, content=content), Settings)
    except ConfigError as error:
        raise ConfigError(environment.blamed(error.problems)) from error


def _resolve(section: dict[str, Any], folder: Path, names: tuple[str, ...]) -> None:
    """Make relative paths relative to the file."""
    for name in names:
        if isinstance(section.get(name), str):
            section[name] = os.path.normpath(folder / section[name])


def _resolve_lists(content: dict[str, Any], folder: Path) -> None:
    """The same for the paths that stand in lists."""
    for name, field in (("compute", "compute_path"), ("warmup", "files")):
        section = content.get(name)
        if isinstance(section, dict) and isinstance(section.get(field), list):
            section[field] = [str(folder / one) if isinstance(one, str) else one for one in section[field]]
    warmup = content.get("warmup")
    schedule = warmup.get("schedule") if isinstance(warmup, dict) else None
    for entry in schedule if isinstance(schedule, list) else ():
        if isinstance(entry, dict) and entry.get("file"):
            _resolve(entry, folder, ("file",))


class _Environment:
    """The settings among the environment variables. Values are YAML, so that a list is `[a, b]`; for a field that is a
    string they are the string, whatever is in it: a password may be `~`, `12345` or `a #b`.

    A variable that has no `__` in its name and is no setting is left alone: Kubernetes makes `HEADRACE_PORT` and others
    for a service called headrace.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.content: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        for name, text in variables.items():
            path = name.removeprefix(_ENVIRONMENT).lower().split("__")
            if name.startswith(_ENVIRONMENT) and (len(path) > 1 or path[0] in Settings.model_fields):
                self._names[".".join(path)] = name
                self._add(name, path, text)

    def _add(self, name: str, path: list[str], text: str) -> None:
        value: Any = text
        try:
            if document.types_at(Settings, tuple(path)) not in ([str], [SecretStr]):
                value = YAML(typ="safe").load(text)
        except YAMLError as error:
            raise ConfigError([Problem(f"${name}", 0, "", "is not valid YAML")]) from error
        for part in reversed(path):
            value = {part: value}
        self.content = _merge(self.content, value)

    def blamed(self, problems: Iterable[Problem]) -> list[Problem]:
        """The problems, with the variable in place of the file where one is to blame."""
        return [self._blamed(problem) for problem in problems]

    def _blamed(self, problem: Problem) -> Problem:
        for path, name in self._names.items():
            if problem.field == path or problem.field.startswith((f"{path}.", f"{path}[")):
                return replace(problem, file=f"${name}", line=0)
        # A check of a whole section does not tell which of its fields is to blame, nor where that one was set.
        inside = f"{problem.field}." if problem.field else ""
        names = [f"${name}" for path, name in self._names.items() if path.startswith(inside)]
        if not names:
            return problem
        return replace(problem, message=f"{problem.message} (from the environment: {', '.join(names)})")


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        inner = merged.get(name)
        merged[name] = _merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def _is_local(address: Address) -> bool:
    if address.path or address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:  # another name, which may mean anything
        return False
