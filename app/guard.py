"""Who owns the top-level names app, agents and tables here: they must be ours.

PyTables is also called ``tables`` and openai-agents ``agents``. Installers let them overwrite each other
without a word, and the program then fails somewhere in the middle. Seen at the start, it is one clear line.
"""

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Final

from app.errors import ConfigurationError

OURS: Final = ("agents", "app", "tables")
_DISTRIBUTION: Final = "holdfast"


def strangers() -> dict[str, set[str]]:
    """Return other distributions that own our names, by name; empty when all is well."""
    owners = importlib.metadata.packages_distributions()
    return {name: others for name in OURS if (others := set(owners.get(name, ())) - {_DISTRIBUTION})}


def misplaced() -> dict[str, str]:
    """Return where our names lead to when they lead past this installation, by name."""
    home = Path(__file__).resolve().parent.parent
    found = {}
    for name in OURS:
        spec = importlib.util.find_spec(name)
        origin = "" if spec is None else spec.origin or "a directory without __init__.py"
        if not origin or Path(origin).resolve() != home / name / "__init__.py":
            found[name] = origin or "nowhere"
    return found


def problems() -> list[str]:
    """Say what is wrong and how to mend it: a line each."""
    own_place = "install Holdfast in a virtual environment of its own (`uv tool install`, `pipx`)"
    lines = [
        f"the package {name} belongs to {', '.join(sorted(others))} as well: {own_place}"
        for name, others in strangers().items()
    ]
    lines += [
        f"the package {name} is found at {origin} instead of beside app: {own_place}"
        for name, origin in misplaced().items()
    ]
    return lines


def check() -> None:
    """Raise :exc:`ConfigurationError` when somebody else owns one of our names."""
    for line in problems():
        raise ConfigurationError(line)
