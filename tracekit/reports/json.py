"""The summary itself."""

import json
from typing import Any


def render(document: dict[str, Any]) -> bytes:
    """``document`` as indented JSON."""
    return (json.dumps(document, indent=1) + "\n").encode()
