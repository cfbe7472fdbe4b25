"""The user's rows -> batches. In the order in which a row meets them:

`read` (rows of files and data sets) -> `megatune.tasks` (text to read and to learn) -> `tokenize` (ids and
loss mask) -> `build`, `pack`, `prepare` (arrays on disk, once) -> `prepared` (memory-mapped) -> `sampler`
(which rows a step takes) -> `batches` (tensors). `preview` shows the result; `fetch`, `pins`, `dialogues`
and `convert_gguf` get a real model and corpus.
"""
