"""The parts of `benchmarks/gpu.py`.

| module | holds |
| --- | --- |
| `part` | `Part`, `Context`: the name, limit and inputs of a part, and how it tells its results |
| `parts` | the table of all parts, the most important first |
| `runner` | one part in a process of its own, within its limit |
| `child` | that process |
| `results` | `results.json`, `results.md` |
| `machine` | device, versions, commit |
| `inputs` | weights and images: laid out in small pieces on one machine, taken over on another |
| `train_step`, `memory`, `sampling` | parts that measure speed and memory |
| `autoencoders`, `features` | likewise |
| `cifar`, `cifar_data`, `cifar_train`, `cifar_score` | the part that trains and measures FID |
"""
