"""What is done with finished datasets: the commands of `flowtrain data`.

verify: reads every byte and names what is damaged.
agreement: files that contradict the manifest although their checksums are right.
repair: the commands that make damaged files again.
diff: in what two datasets differ.
merge: several datasets as one.
merge_plan: which datasets fit together, and what they become.
inspect: records and pictures of a dataset, finished or not.
"""
