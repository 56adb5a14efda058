"""Which versions made a thing."""

from importlib import metadata


def installed_version(package: str) -> str:
    """An installed distribution's version, or "not installed" (run from a source tree)."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
