"""`headrace models …`: what a repository's models take and give, a check, a first manifest, and a running gateway's.

Without a subcommand, and with `check`, models are loaded here as the server would load them. `list`, `load` and
`unload` ask a running gateway through the repository rpcs of the Open Inference Protocol.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click
import grpc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featureclient.schema import Catalogue, ConfigError, FeatureError, Problem, View
from gateway.server import settings as settings_file
from gateway.server.command import CONFIG, TARGET, command, console, credentials, stop, tls

if TYPE_CHECKING:
    from gateway.plan.explain import Input
    from gateway.server.model_check import Looked

_P = ParamSpec("_P")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_TOKEN = click.option(
    "--token", envvar="HEADRACE_ADMIN_TOKEN", show_envvar=True, help="The gateway's `admin_token`, if it needs one."
)
_TIMEOUT = click.option(
    "--timeout-s", default=60.0, show_default=True, help="The deadline; a large graph loads slowly."
)


@click.group(invoke_without_command=True)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The settings file.  [default: headrace.yaml]",
)
@_JSON
@click.pass_context
def models(context: click.Context, config: Path | None, as_json: bool) -> None:
    """Load the models of a configuration, check them, and print what each takes and gives.

    The subcommands explain a model, write a first manifest, and load and unload models of a running gateway.
    """
    if context.invoked_subcommand is None:
        config = config or Path("headrace.yaml")
        if not config.is_file():
            raise click.BadParameter(f"File '{config}' does not exist.", param_hint="'--config'")
        _overview(config, as_json)
    elif config is not None or as_json:
        raise click.UsageError(
            f"write the options behind the subcommand: headrace models {context.invoked_subcommand} …"
        )


@command
async def _overview(config: Path, as_json: bool) -> None:
    looked = await _look_at(config, None)
    if as_json:
        click.echo(json.dumps([_described(one) for one in looked], indent=2))
    else:
        table = Table("model", "version", "state", "entities", "context", "views", "outputs", "runs on")
        for one in looked:
            table.add_row(*_row(one))
        console().print(table)
    _end(looked)


@models.command()
@CONFIG
@_JSON
@click.option("--model", "name", help="Only this one.")
@command
async def check(config: Path, as_json: bool, name: str | None) -> None:
    """Explain models against the catalogue and their graphs: each input, its columns, where they come from, what is
    cast. Exits with 1 when something is wrong."""
    looked = await _look_at(config, name)
    if as_json:
        click.echo(json.dumps([_described(one) for one in looked], indent=2))
    else:
        for one in looked:
            _explain(one)
        wrong = sum(len(one.problems) for one in looked)
        warned = sum(len(one.warnings) for one in looked)
        click.echo(f"versions {len(looked)}, problems {wrong}, warnings {warned}")
    if any(one.problems for one in looked):
        sys.exit(1)


@models.command()
@click.argument("graph", metavar="MODEL.onnx", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--catalogue",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The features.yaml whose columns may fill the inputs. Without it the caller sends everything.",
)
@click.option("--view", "refs", multiple=True, help="A view to take columns from, as plane_stats@1; otherwise all.")
@click.option("--name", help="The model's name; otherwise that of its folder or file.")
@click.option(
    "--columns",
    "names",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with the names of a matrix's columns in order: one a line, or a JSON list.",
)
@click.option("--rest-from-request", is_flag=True, help="Columns that no view has are sent by the caller.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write it there, not to stdout.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
def init(
    *,
    graph: Path,
    catalogue: Path | None,
    refs: tuple[str, ...],
    name: str | None,
    names: Path | None,
    rest_from_request: bool,
    output: Path | None,
    force: bool,
) -> None:
    """Write a starting manifest for a graph. What cannot be told is marked TODO, and `check` names it."""
    if refs and catalogue is None:
        stop("--view needs --catalogue, the features.yaml that has the view")
    if output is not None and output.exists() and not force:
        stop(f"{output} is there already; --force overwrites it")
    try:
        views = _views(catalogue, refs)
        text = _drafted(graph, name or _name_of(graph), views, names, rest_from_request=rest_from_request)
        if output is None:
            click.echo(text, nl=False)
            return
        output.write_text(text)
    except (FeatureError, OSError, ValueError) as error:
        stop(str(error))
    left = text.count("# TODO")
    click.echo(f"{output}: {left} TODO left; `headrace models check` says what they need" if left else str(output))


def _views(catalogue: Path | None, refs: Sequence[str]) -> list[View]:
    """The views that may fill the inputs: those that are named, or all."""
    if catalogue is None:
        return []
    known = Catalogue.load(catalogue)
    return [known.view(ref) for ref in refs] if refs else [*known.views.values()]


def _drafted(graph: Path, name: str, views: Sequence[View], names: Path | None, *, rest_from_request: bool) -> str:
    from gateway.inference.metadata import column_names, metadata_of, names_in
    from gateway.inference.session import InferenceOptions, Session, SessionError
    from gateway.plan.draft import draft

    try:
        signature = Session(graph, InferenceOptions()).signature
    except SessionError as error:
        raise ConfigError([Problem(str(graph), 0, "", str(error))]) from error
    columns = names_in(names.read_text()) if names is not None else column_names(metadata_of(graph))
    return draft(name, signature, views, names=columns, rest_from_request=rest_from_request)


def _administration(run: Callable[_P, None]) -> Callable[_P, None]:
    """The options of a command that asks a running gateway."""
    for option in (_TIMEOUT, _TOKEN, tls, TARGET):
        run = option(run)
    return run


@models.command("list")
@_administration
@_JSON
@click.option("--ready", is_flag=True, help="Only those that serve.")
def list_models(*, as_json: bool, ready: bool, **rest: Any) -> None:
    """List the models of a running gateway, with their states and the reason where one does not serve."""
    from headrace.inference import grpc_service_pb2 as pb

    answer = _ask("RepositoryIndex", pb.RepositoryIndexRequest(ready=ready), **rest)
    rows = [(one.name, one.version, one.state, one.reason) for one in answer.models]
    if as_json:
        names = ("model", "version", "state", "reason")
        click.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2))
        return
    table = Table("model", "version", "state", "reason")
    for row in rows:
        table.add_row(*map(Text, row))
    console().print(table)


@models.command()
@_administration
@click.argument("model")
def load(*, model: str, **rest: Any) -> None:
    """Load a model of the repository, or load it again, into a running gateway. If it fails, what serves stays."""
    from headrace.inference import grpc_service_pb2 as pb

    _ask("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=model), **rest)
    click.echo(f"{model} is loaded")


@models.command()
@_administration
@click.argument("model")
def unload(*, model: str, **rest: Any) -> None:
    """Stop serving a model. What it has taken in is still answered."""
    from headrace.inference import grpc_service_pb2 as pb

    _ask("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=model), **rest)
    click.echo(f"{model} is unloaded")


def _ask(
    rpc: str,
    request: Any,
    *,
    target: str,
    token: str | None,
    timeout_s: float,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
) -> Any:
    """Call one of the repository rpcs; what the gateway refuses is the message that the command ends with."""
    from headrace.inference import grpc_service_pb2_grpc

    given = credentials(ca, cert, key)
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.secure_channel(target, given) if given else grpc.insecure_channel(target) as channel:
        call = getattr(grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel), rpc)
        try:
            return call(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            stop(f"{target}: {error.code().name}: {error.details()}")


async def _look_at(config: Path, name: str | None) -> "list[Looked]":
    from gateway.server.model_check import look_at  # ONNX Runtime takes a while, and no other command needs it

    settings = settings_file.load(config)
    return await asyncio.to_thread(look_at, settings, Catalogue.load(settings.catalogue), name)


def _end(looked: "Sequence[Looked]") -> None:
    """Say what is wrong, and exit with 1 if anything is."""
    problems = [str(advised) for one in looked for advised in one.problems]
    if problems:
        stop("\n".join(problems))


def _row(one: "Looked") -> Iterator[Any]:
    """A version as a row of the overview."""
    model = one.model
    yield one.name
    yield " ".join([str(one.version or "-"), *(model.labels if model else ())])
    yield one.state
    if model is None:
        yield from ("", "", "", Text(one.reason), "")
        return
    yield "\n".join(f"{name}: {dtype}" for name, dtype in model.plan.entities.items())
    yield "\n".join(f"{column.name}: {column.dtype}" for column in model.plan.context)
    yield "\n".join(f"{binding.alias}: {binding.view.ref}" for binding in model.plan.bindings)
    yield Text("\n".join(map(str, model.signature.outputs)))
    yield "\n".join(_nodes(one))


def _nodes(one: "Looked") -> list[str]:
    """The execution providers of a version, with their nodes of the graph where these are known."""
    if one.model is None:
        return []
    facts = one.model.facts
    names = facts.providers or tuple(facts.nodes)
    short = [name.removesuffix("ExecutionProvider") for name in names]
    return [
        f"{said} ({facts.nodes[name]} nodes)" if name in facts.nodes else said
        for name, said in zip(names, short, strict=True)
    ]


def _described(one: "Looked") -> dict[str, Any]:
    model, signature = one.model, one.signature
    described: dict[str, Any] = {
        "model": one.name,
        "version": one.version,
        "state": one.state,
        "reason": one.reason,
        "file": None if one.path is None else str(one.path),
        "warnings": [_problem(warning) for warning in one.warnings],
        "problems": [{**_problem(advised.problem), "advice": advised.advice} for advised in one.problems],
    }
    if model is not None:
        described |= {
            "labels": list(model.labels),
            "entities": dict(model.plan.entities),
            "context": {column.name: str(column.dtype) for column in model.plan.context},
            "views": {binding.alias: binding.view.ref for binding in model.plan.bindings},
            "providers": list(model.facts.providers),
            "nodes": dict(model.facts.nodes),
        }
    if signature is not None:
        described["inputs"] = [str(spec) for spec in signature.inputs]
        described["outputs"] = [str(spec) for spec in signature.outputs]
    if one.explained is not None:
        described["columns"] = {
            filled.name: [
                {
                    "column": column.name,
                    "dtype": None if column.origin.dtype is None else str(column.origin.dtype),
                    "from": column.origin.text,
                    "place": column.place,
                    "cast": column.cast,
                    "missing": column.origin.missing,
                    "advice": column.advice,
                }
                for column in filled.columns
            ]
            for filled in one.explained.inputs
        }
    return described


def _problem(problem: Problem) -> dict[str, Any]:
    return {"file": problem.file, "line": problem.line, "field": problem.field, "message": problem.message}


def _explain(one: "Looked") -> None:
    """Print one version for people: a table for each input, then outputs, warnings, problems."""
    out = console()
    version = f"/{one.version}" if one.version else ""
    out.print(Text(f"{one.name}{version}", style="bold"), Text("ready" if one.model else "does not load"))
    if one.explained is not None:
        for filled in one.explained.inputs:
            _explain_input(out, filled)
    elif one.signature is not None:
        for spec in one.signature.inputs:
            out.print(Text(f"  input {spec}: the caller sends it, there is no manifest"))
    if one.signature is not None:
        out.print(Text("  answers " + ", ".join(map(str, one.signature.outputs))))
    if on := _nodes(one):
        out.print(Text(f"  runs on {', '.join(on)}"))
    for warning in one.warnings:
        click.echo(f"warning: {warning}")
    for advised in one.problems:
        click.echo(f"problem: {advised}")
    click.echo()


def _explain_input(out: Console, filled: "Input") -> None:
    """One input and its columns."""
    title = f"input {filled.spec}" if filled.spec is not None else f"{filled.name}: the graph has no such input"
    table = Table(
        "place", "column", "dtype", "from", "cast", "when missing", "", title=Text(title), title_justify="left"
    )
    for column in filled.columns:
        origin = column.origin
        dtype = "?" if origin.dtype is None else str(origin.dtype)
        mark = "✗" if column.advice else ""
        table.add_row(*map(Text, (column.place, column.name, dtype, origin.text, column.cast, origin.missing, mark)))
    out.print(table)


def _name_of(graph: Path) -> str:
    """`ranker` for `models/ranker/1/model.onnx`, and otherwise the name of the file."""
    folders = graph.resolve().parts
    if graph.name == "model.onnx" and len(folders) > 2 and folders[-2].isdecimal():  # noqa: PLR2004 - name, version, file
        return folders[-3]
    return graph.stem
