"""What is on disk and in a configuration. Every stage, and any other program, can read it.

Nothing in here imports JAX, Beam, Grain or TensorFlow.

manifest, manifest_checks, record, layout, tfds_metadata: a latent dataset;
columns: many records decoded at once.
statistics: moments of features; run: a work directory; config, recipes: a recipe and its file.
sampler, solvers: how samples are drawn; pixels: uint8 and [-1, 1].
png: the encoder of pictures; rules: tables of (condition, sentence) that requests are checked by.
growing: formats that gain fields; sealed: files that end with their digest; versions: of packages.
files, locked: small local files written whole, one process at a time; text: facts as lines;
json_text, arrays: what is read out of files of JSON and of NumPy;
errors: what users mend; bars: progress of a command.
storage: files and folders by path or URL.
"""
