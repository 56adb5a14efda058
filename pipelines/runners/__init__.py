"""How a Beam pipeline is started, here or elsewhere.

runner: runs a pipeline in this process, or hands it over.
submission: Dask, Flink and other job services.
dataflow: Dataflow: options, checks, the job that is built.
worker: a worker process that ends with its command.
beam_noise: Beam's log and traces where a command has nothing to say.
"""
