"""`module:function`, as catalogues and manifests name code. Configuration names code, it does not bring it."""

import importlib
from collections.abc import Callable, Collection
from typing import Any

from featureclient.schema.errors import FeatureError


class BadReference(FeatureError, ValueError):
    """The reference names a module that is not allowed, or nothing that can be called."""


def resolve(reference: str, allowed: Collection[str], setting: str) -> Callable[..., Any]:
    """The function, in one of the modules that `setting` allows. Raises BadReference.

    Importing a module runs it: an Exception that it raises becomes a BadReference.
    """
    module_name, _, name = reference.partition(":")
    if module_name not in allowed:
        known = ", ".join(sorted(allowed)) or "none"
        raise BadReference(f"module {module_name!r} is not in the setting {setting} (it has: {known})")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise BadReference(f"cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise BadReference(f"module {module_name!r} has no function {name!r}")
    return function  # type: ignore[no-any-return]  # what it gives is checked by who calls it
