"""All parts, the most important first."""

from benchmarks.gpu_parts.part import PYDANTIC, SHAPES, Part

_HERE = "benchmarks.gpu_parts"

PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part(
            name="train",
            line=(
                "train step of DiT-B/2, XL/2 and S/2 in bfloat16 against torch.compile: images/s, "
                "peak memory"
            ),
            limit=330,
            module=f"{_HERE}.train_step",
            packages=SHAPES,
        ),
        Part(
            name="autoencoders",
            line=(
                "encode and decode of SD's VAE and of TAEF2 in bfloat16 against torch.compile; "
                "decode in float32"
            ),
            limit=180,
            module=f"{_HERE}.autoencoders",
            packages=SHAPES,
        ),
        Part(
            name="sampling",
            line=(
                "50 steps of DiT-B/2 and XL/2 with and without guidance, and torch.compile's loop: "
                "images/s"
            ),
            limit=240,
            module=f"{_HERE}.sampling",
            packages=(*SHAPES, *PYDANTIC),
        ),
        Part(
            name="features",
            line=(
                "Inception and DINOv2-L, random weights of their layouts, against PyTorch: images/s"
            ),
            limit=150,
            module=f"{_HERE}.features",
            packages=SHAPES,
        ),
        Part(
            name="memory",
            line="memory that XLA plans for the train step, and memory that was used",
            limit=90,
            module=f"{_HERE}.memory",
            packages=SHAPES,
        ),
        Part(
            name="cifar",
            line=(
                "flow and diffusion on CIFAR-10's latents: trains as long as it may, then FID by "
                "sampling steps"
            ),
            limit=540,
            module=f"{_HERE}.cifar",
            packages=(*SHAPES, *PYDANTIC, "PIL", "safetensors"),
            inputs=("cifar10", "inception", "taef2"),
            by_default=False,
        ),
    )
}
