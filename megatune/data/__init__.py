"""The user's rows -> batches. In the order in which a row meets them:

`folders`, `read` (files and blocks of rows: `jsonfiles`, `textfiles`, `parquet`, `dataset_rows`) -> `segmenting`
and `megatune.tasks` (text to read and to learn) -> `tokenize` (ids and loss mask) -> `part` (written by each
process; `shared`, `crew` and `mpi_team` bring several together) -> `pool`, `build`, `mixture`, `pack` (arrays of
a set) -> `prepare` (once, whole or not at all) -> `prepared` (memory-mapped) -> `sampler` (which rows a step
takes) -> `batches` (tensors). `quality` and `preview` show the result, from what `tally` counts, `row_ids` and
`duplicates` find in one set and `overlaps` in two; `notices` says it, and `quality` refuses a set without an example;
`spm_train` and `spm_tokenizer` make tokenizers; `fetch`, `pins`, `dialogues` and `convert_gguf` get a real model and
corpus.
"""
