"""What a session runs on: the nodes of its graph that each execution provider took, and whether that is what was asked.

ONNX Runtime keeps the placement when it is told to before the load; reading it costs microseconds and no run. Releases
before 1.24 cannot tell. There only the session's providers are known, and `nodes` stays empty.

A provider that compiles its part of the graph (TensorRT, OpenVINO, CoreML, QNN) counts the nodes that went in.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gateway.inference.providers import Resolved, short_name

SWITCH = ("session.record_ep_graph_assignment_info", "1")
"""The session setting that makes ONNX Runtime keep the placement."""
_OPERATORS_SHOWN = 5


class Placement:
    """Nodes of a graph by provider, and by operator for messages."""

    __slots__ = ("nodes", "operators")

    def __init__(self, operators: Mapping[str, Counter[str]]) -> None:
        self.operators = operators
        self.nodes: Mapping[str, int] = {provider: counted.total() for provider, counted in operators.items()}

    @classmethod
    def of(cls, session: Any) -> "Placement":
        """Ask an ONNX Runtime session; empty where this release cannot tell."""
        read = getattr(session, "get_provider_graph_assignment_info", None)
        operators: dict[str, Counter[str]] = {}
        for part in read() if read is not None else ():
            counted = operators.setdefault(short_name(part.ep_name), Counter())
            counted.update(node.op_type for node in part.get_nodes())
        return cls(operators)

    def shortfall(self, resolved: Resolved, providers: Sequence[str], failed: Collection[str]) -> list[str]:
        """What is less than asked: a provider that is not in the session, or whose place another took.

        What is known to have `failed` is not said again. `auto` asks for the best that is there, so that a graph which
        that provider takes no node of is no shortfall.
        """
        tried = [name for name, _ in resolved.providers if name not in failed]
        found = [
            f"{name} did not start, ONNX Runtime wrote why to stderr; the session has {', '.join(providers)}"
            for name in tried
            if name not in providers
        ]
        if not self.nodes or resolved.auto:
            return found
        wanted = [name for name in resolved.asked if name != "cpu"]
        total = sum(self.nodes.values())
        if wanted and not any(self.nodes.get(name) for name in wanted):
            if any(name in providers for name in wanted):
                found.append(f"{' and '.join(wanted)} took none of its {total} nodes")
        elif elsewhere := {name: count for name, count in self.nodes.items() if name not in resolved.asked}:
            found += [
                f"{count} of {total} nodes run on {name} ({self._shown(name)}); name {name} in providers to allow that"
                for name, count in elsewhere.items()
            ]
        return found

    def _shown(self, provider: str) -> str:
        most = [operator for operator, _ in self.operators[provider].most_common(_OPERATORS_SHOWN + 1)]
        return ", ".join(most[:_OPERATORS_SHOWN]) + (", …" if len(most) > _OPERATORS_SHOWN else "")
