"""VAEs on the Hugging Face hub: fetched file by file into the hub's cache, or found there.

Only what is needed is fetched: a repository may hold other models and tens of gigabytes of them.
What is in the cache is taken when the hub cannot be reached; a commit that is there, with weights
under diffusers' names, without asking.
"""

import warnings
from pathlib import Path, PurePosixPath

from pipelines.encoders.hub import see_hub, told_in_one_line
from pipelines.encoders.weight_files import (
    CONFIG_FILE,
    INDEX_FILE,
    PIPELINE_FOLDER,
    WEIGHTS_FILE,
    choose_weights,
    indexed_files,
)
from pipelines.runners.beam_noise import quiet_log

_INSTEAD = (
    "or give a directory (none has that name); `--vae embedded` and `--vae none` of preprocess "
    "need no network"
)


def fetch_vae(repository: str, folder: str | None, revision: str | None) -> tuple[Path, str, str]:
    """Have the config and the weights of a VAE in the cache.

    Args:
        repository: `org/name`.
        folder: of the VAE in the repository; None for its root, or `vae` when the root has no
            config.
        revision: branch, tag or commit; None for the main branch.

    Returns:
        The directory in the cache, the folder in the repository ("" for its root), the commit.

    Raises:
        UserError: no such repository, revision or VAE, no way to reach it, or no safetensors in it.
    """
    label = f"the VAE {repository}" + (f" at revision {revision}" if revision else "")
    configs = (
        [_within(folder, CONFIG_FILE)]
        if folder
        else [CONFIG_FILE, _within(PIPELINE_FOLDER, CONFIG_FILE)]
    )
    missing = (
        f"the repository has no {' and no '.join(configs)}; name the folder of its VAE as "
        "org/name:folder"
    )
    with told_in_one_line(label, missing, _INSTEAD), quiet_log(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config, folder = _fetch_config(repository, folder, revision)
        commit = config.parents[len(PurePosixPath(folder).parts)].name
        _fetch_weights(repository, folder, commit, config.parent)
    return config.parent, folder, commit


def _fetch_config(repository: str, folder: str | None, revision: str | None) -> tuple[Path, str]:
    """The config in the cache and its folder in the repository."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    first = _within(folder or "", CONFIG_FILE)
    try:
        see_hub(repository, first, revision)
        return Path(hf_hub_download(repository, first, revision=revision)), folder or ""
    except EntryNotFoundError as error:
        if folder is not None:
            raise
        # Neither fetched nor found: whether the hub was asked in vain once is enough to know.
        only_here = isinstance(error, LocalEntryNotFoundError)
        inner = _within(PIPELINE_FOLDER, CONFIG_FILE)
        try:
            found = hf_hub_download(
                repository, inner, revision=revision, local_files_only=only_here
            )
        except LocalEntryNotFoundError:
            raise error from None
        return Path(found), PIPELINE_FOLDER


def _fetch_weights(repository: str, folder: str, commit: str, directory: Path) -> None:
    """Have the weight files beside the config; the hub is asked only for what is missing."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    if (directory / WEIGHTS_FILE).is_file():
        return
    if (directory / INDEX_FILE).is_file():
        chosen = INDEX_FILE
    else:
        here = [path.name for path in directory.iterdir()]
        try:
            see_hub(repository, _within(folder, WEIGHTS_FILE), commit)
            listed = [
                PurePosixPath(file) for file in HfApi().list_repo_files(repository, revision=commit)
            ]
        except OfflineModeIsEnabled:
            choose_weights(here, f"{directory} (HF_HUB_OFFLINE is set)")
            return
        names = [file.name for file in listed if file.parent == PurePosixPath(folder)]
        chosen = choose_weights(names, _within(repository, folder))
        hf_hub_download(repository, _within(folder, chosen), revision=commit)
    if chosen == INDEX_FILE:
        for name in indexed_files(directory / INDEX_FILE):
            hf_hub_download(repository, _within(folder, name), revision=commit)


def _within(folder: str, name: str) -> str:
    return str(PurePosixPath(folder) / name)
