"""Variants: what a kernel may have of a policy, as ``--kernel-has NAME=VARIANT`` says it."""

from collections.abc import Iterable, Mapping

from tracekit import registry
from tracekit.errors import UsageError
from tracekit.policies._parameters import parameters
from tracekit.policies._spec import kind_of


def read(texts: Iterable[str]) -> dict[str, str]:
    """``NAME=VARIANT`` … → a mapping.

    Raises:
        UsageError: one of another form, or one policy twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, variant = text.partition("=")
        if not equals or not name or not variant:
            raise UsageError(f"--kernel-has {text}: say NAME=VARIANT, as in batched_zap=upstream")
        if found.setdefault(name, variant) != variant:
            raise UsageError(f"--kernel-has {text}: {name}={found[name]} was said, too")
    return found


def check(has: Mapping[str, str]) -> None:
    """Refuse what no kernel can have.

    Raises:
        UsageError: no such policy, or none of its variants; says which there are.
    """
    for name, variant in has.items():
        known = variants(name)
        if variant not in known:
            raise UsageError(f"--kernel-has {name}={variant}: {name} is one of {', '.join(known)}")


def variants(name: str) -> list[str]:
    """What a kernel may have of the policy ``name``, none of it included.

    Raises:
        UsageError: no such policy, or it is nothing that a kernel has.
    """
    kind = kind_of(name)
    if not hasattr(kind, "variant"):
        able = [one for one in registry.names("tracekit.policies") if hasattr(kind_of(one), "variant")]
        raise UsageError(f"--kernel-has: no kernel has {name}; these it may have: {', '.join(able)}")
    settings = [{one.name: one.read(choice)} for one in parameters(kind).values() for choice in one.choices]
    return sorted({"none", kind().variant, *(kind(**setting).variant for setting in settings)})
