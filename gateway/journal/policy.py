"""What may be written of personal data: a policy for each column that has some. See `gateway.journal.redaction`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Policy: TypeAlias = Literal["hash", "drop", "mask"]


@dataclass(frozen=True, slots=True)
class Redaction:
    """Which columns may be written, and how. `policies` has names of entity or feature columns."""

    policies: Mapping[str, Policy] = field(default_factory=dict)
    salt: bytes = b""

    def of(self, name: str) -> Policy | None:
        """The policy of a column: of its own name, or of its name without the alias of its view."""
        if not self.policies:
            return None
        return self.policies.get(name) or self.policies.get(name.rpartition(".")[2])

    def unknown(self, columns: Iterable[str]) -> list[str]:
        """The names that are none of these columns: most likely misspelt, and then what they mean is not protected."""
        known = {known for name in columns for known in (name, name.rpartition(".")[2])}
        return [name for name in self.policies if name not in known]
