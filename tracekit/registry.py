"""The only plug-in mechanism: a plug-in is a module in a package, its file name is its name.

Listing names imports nothing, so one broken plug-in does not break the others.
"""

import importlib
import pkgutil
from types import ModuleType

from tracekit.errors import UsageError


def names(package: str) -> list[str]:
    """Names of the public modules of ``package`` (dotted), sorted, none of them imported."""
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import plug-in ``name`` of ``package``.

    Raises:
        UsageError: there is none of that name; says which there are.
    """
    known = names(package)
    if name not in known:
        kind = package.rsplit(".", 1)[-1]
        raise UsageError(f"{name!r} is not among the {kind}: {', '.join(known)}")
    return importlib.import_module(f"{package}.{name}")
