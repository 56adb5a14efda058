"""A machine that has not all of this project's dependencies."""

ABSENT = [
    "beartype",
    "apache_beam",
    "array_record",
    "grain",
    "orbax",
    "pydantic",
    "PIL",
    "safetensors",
    "tensorflow_datasets",
]
ABSENT += [
    "diffusers",
    "torch",
    "click",
    "matplotlib",
    "tqdm",
    "jinja2",
    "mlxtend",
    "tensorboardX",
    "wandb",
]
