"""Which transformers this package works with; imported before anything that imports transformers."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

OLDEST = "5.23"
TESTED = "5.23.0"


def check(installed: str | None) -> None:
    """Refuse a version whose caches and masks are not those that this package was written for.

    Args:
        installed: the version of transformers, None where there is none.

    Raises:
        ImportError: there is none, or it is too old.
    """
    if installed is None:
        found = "it is not installed"
    elif _number(installed) < _number(OLDEST):
        found = f"{installed} is installed"
    else:
        return
    raise ImportError(
        f"fdpp.integrations.transformers needs transformers {OLDEST} or later (tested with {TESTED}), and {found}. "
        f"Install it with `pip install 'transformers>={OLDEST}'`."
    )


def _number(version_text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version_text.split(".")[:2])


def installed_version() -> str | None:
    """The version of transformers in this environment, None where there is none."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return None


check(installed_version())
