"""Files of the Hugging Face hub, fetched or cached; failures are told in one line.

The hub's client respects `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_TOKEN`.
It tries six times in half a minute and tells of each try, so what is not in the cache is asked for
once before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import UserError


def fetch_file(repository: str, name: str, revision: str | None = None) -> Path:
    """Have a file of a repository in the cache.

    What is there is taken without asking the hub, so a branch stays at the commit that was fetched
    first; whoever uses the file writes down its SHA-256.

    Args:
        repository: `org/name`.
        name: of the file in it.
        revision: branch, tag or commit; None for the main branch.

    Returns:
        The file in the cache.

    Raises:
        UserError: no such repository, revision or file, or no way to reach the hub.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    found = try_to_load_from_cache(repository, name, revision=revision)
    if isinstance(found, str):
        return Path(found)
    label = f"{name} of {repository}" + (f" at revision {revision}" if revision else "")
    missing = "the repository has no such file; give another repository, or give a local file"
    with told_in_one_line(label, missing, "or give a local file"):
        see_hub(repository, name, revision)
        return Path(hf_hub_download(repository, name, revision=revision))


def see_hub(repository: str, file: str, revision: str | None) -> None:
    """Ask the hub once whether it answers, unless the file is cached or the client is offline.

    Raises:
        LocalEntryNotFoundError: it gave no answer.
    """
    from huggingface_hub import (
        constants,
        errors,
        get_hf_file_metadata,
        hf_hub_url,
        try_to_load_from_cache,
    )

    if constants.HF_HUB_OFFLINE or isinstance(
        try_to_load_from_cache(repository, file, revision=revision), str
    ):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, file, revision=revision))
    except errors.HfHubHTTPError:
        pass  # an answer; what it means, and whether it is worth another try, the client says
    # of the HTTP library, which is not the same in all releases of the client
    except Exception as error:
        raise errors.LocalEntryNotFoundError(str(error)) from error


@contextmanager
def told_in_one_line(label: str, missing: str, instead: str) -> Iterator[None]:
    """Everything that the hub's client raises, as one line for the user.

    Args:
        label: what was asked for.
        missing: what to say when the repository lacks the file.
        instead: what can be done without that repository.

    Raises:
        UserError: for every exception within the context.
    """
    from huggingface_hub import constants, errors

    offline = "HF_HUB_OFFLINE is set; unset it once to fetch it"
    unreachable = f"the hub at {constants.ENDPOINT} gave no answer; try again"
    table: tuple[tuple[type[Exception], str], ...] = (  # the first row that fits counts
        (
            errors.GatedRepoError,
            "its owners let it out only to those who accept its terms on the hub and set HF_TOKEN",
        ),
        (
            errors.RepositoryNotFoundError,
            "the hub has no such repository, or it is private and HF_TOKEN not set; correct the "
            f"name, {instead}",
        ),
        (errors.RevisionNotFoundError, "it has no such revision; give a branch, a tag or a commit"),
        (
            errors.LocalEntryNotFoundError,
            f"it is not in the cache {constants.HF_HUB_CACHE}, and "
            f"{offline if constants.HF_HUB_OFFLINE else unreachable}, {instead}",
        ),
        (errors.EntryNotFoundError, missing),
    )
    try:
        yield
    except UserError:
        raise
    # besides its own errors, the client lets through those of its HTTP library and the OS
    except Exception as error:
        told = [reason for kind, reason in table if isinstance(error, kind)]
        first_line = (str(error).strip().splitlines() or [""])[0].strip()
        reason = told[0] if told else f"{type(error).__name__}: {first_line}"
        raise UserError(f"cannot get {label} from the hub: {reason}") from error
