"""What a run needs and how fast it is, from config.json alone: no torch, no GPU. `megatune plan` prints it.

Read in this order:
- `config_values`, `shape`, `blocks`, `weights`: the model, tensor by tensor; `families`, `shards`: who holds what under
  tensor parallelism
- `layout`, `layout_text`: what is chosen; `states`, `buckets`, `activations`, then `ledger`: the memory of one choice
- `hardware`, `speeds`, `network`, `practice`, `work`, `traffic`, then `step_time`: its time; `links`: measured networks
- `model_config` and `question` (from a run file), `assess` (one layout), `layout_keys` and `validity` (can it be
  trained?), `search` (all of them), `refusal` (none fits), `auto` and `given` (what the run file leaves open),
  `lengths` (at other sequence lengths), `forecast` (the whole run), `answer` (as JSON)
- `ds_config`: DeepSpeed's configuration; `flops`: the conventions of counting
"""
