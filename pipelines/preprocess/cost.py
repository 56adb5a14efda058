"""What a plan will cost: records, shards, bytes on disk, the encoder's work, and hours at a given
rate.
"""

from typing import Any

from pipelines.preprocess.plan import Plan
from schemas.manifest import SETTINGS_NAME


def describe(plan: Plan, images_per_second: float) -> dict[str, Any]:
    """The plan in figures, for people and for JSON. Writes nothing; with a VAE this imports JAX to
    count its work.

    Args:
        plan: what would be made.
        images_per_second: encoded by all workers together; a mirrored image counts as an image.

    Returns:
        `bytes` are those of the tensors (keys and framing come on top, about 100 bytes a record);
        `flops_per_image` are the encoder's for one image, both views with `--flips`, a multiply-add
        being two; `flops` are those of all images; None without a VAE.
    """
    settings = plan.settings
    views = len(settings.splits)
    flops = None
    if settings.vae is not None:
        from pipelines.encoders.flops import encoder_flops

        one = encoder_flops(settings.vae.id, settings.resolution, settings.vae.revision)
        flops = None if one is None else one * views
    return {
        "source": settings.source.descriptor,
        "out": plan.directory.root,
        "state": _state(plan),
        "images": settings.records,
        "duplicates": settings.duplicates,
        "classes": len(settings.classes),
        "splits": list(settings.splits),
        "layout": settings.layout.value,
        "shape": list(settings.shape),
        "vae_dtype": None if settings.vae is None else settings.vae.dtype,
        "shards": settings.shards,
        "bytes": plan.tensor_bytes,
        "bytes_per_shard": plan.tensor_bytes // (settings.shards * views),
        "flops_per_image": flops,
        "flops": None if flops is None else flops * settings.records,
        "images_per_second": images_per_second,
        "hours": round(settings.records * views / images_per_second / 3600, 2),
        "command": settings.command(),
    }


def _state(plan: Plan) -> str:
    if plan.finished:
        return "finished"
    if plan.directory.exists(SETTINGS_NAME):
        return "begun"
    return "new"
