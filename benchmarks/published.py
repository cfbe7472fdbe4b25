"""Published training speeds, with the layouts they were measured with, as data for benchmarks/planner.py.

Sources: SC21 = Narayanan et al., arXiv:2104.04473, tables 1 and 2 (micro-batches and interleaving from
Megatron-LM's examples/sc21/run_table_1.sh); Korthikanti et al., arXiv:2205.05198, table 5; llm-foundry =
its scripts/train/benchmarking/README.md; torchtitan = its benchmarks/llama3_h100_202412_torchtitan.md;
Megatron-LM = its README of 2024, which gives no layout: tp 8, 12 stages of 8 chunks are assumed here;
OPT = arXiv:2205.01068, section 2; FSDP = arXiv:2304.11277, section 5.4; BLOOM = arXiv:2211.05100, section 3.4;
GPT-NeoX = arXiv:2204.06745, section 3; MT-NLG = arXiv:2201.11990, section 2.4; Llama 3 = arXiv:2407.21783, table 4;
Korthikanti with data parallelism = its abstract and section 6.3; torchtitan on 128 GPUs, and without compilation =
its tables 1 and 3.
"""

from dataclasses import dataclass, replace
from typing import Any

from megatune.plan.layout import Layout
from megatune.plan.practice import Practice

Config = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured step time."""

    source: str
    name: str
    gpu: str
    config: Config
    seq: int
    layout: Layout
    practice: Practice
    step_s: float
    ranks_per_node: int = 8

    @property
    def machine(self) -> dict[str, float]:
        """What the hardware table's row is to be changed by."""
        return _MACHINES.get(self.source, {})


def gpt(hidden: int, layers: int, heads: int, vocabulary: int = 51200, positions: int = 2048) -> Config:
    """A GPT of the papers: GPT-2's parameters."""
    return {"model_type": "gpt2", "n_embd": hidden, "n_layer": layers, "n_head": heads,
            "vocab_size": vocabulary, "n_positions": positions}  # fmt: skip


LLAMA_8B: Config = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
                    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
                    "vocab_size": 128256, "tie_word_embeddings": False}  # fmt: skip
LLAMA_405B: Config = {**LLAMA_8B, "hidden_size": 16384, "num_hidden_layers": 126, "num_attention_heads": 128,
                      "intermediate_size": 53248}  # fmt: skip
_MACHINES: dict[str, dict[str, float]] = {
    "BLOOM 176B": {"network_bytes_per_s": 6.25e9},  # section 3.4: four Omni-Path ports of 100 Gb/s for 8 GPUs
    "FSDP 175B": {"network_bytes_per_s": 31.25e9},  # section 5.1: a 2 Tb/s RoCE network
    "GPT-NeoX 20B": {"network_bytes_per_s": 12.5e9},  # "Hardware": four ConnectX-6 of 200 Gb/s for 8 GPUs
    "torchtitan": {"memory_bytes_per_s": 2.4e12},  # "Hardware": HBM2e instead of HBM3
}
"""Rates of machines that are not the hardware table's, by the names that they have there."""
MEGATRON = Practice(attention="fused", fused_elementwise=True, recompute="full")
FSDP = Practice(attention="flash", fused_elementwise=True, reduce_bytes=4)


def _layout(
    devices: int, tp: int, stages: int, batch: int, micro: int, *, stage: int, checkpointing: bool
) -> Layout:
    data = devices // (tp * stages)
    return Layout(
        tensor_parallel=tp,
        data_parallel=data,
        micro_batch=micro,
        accumulation=max(1, batch // (data * micro)),
        gradient_checkpointing=checkpointing,
        zero_stage=stage,
    )


def _sc21_flops(hidden: int, layers: int, batch: int, vocabulary: int = 51200, seq: int = 2048) -> float:
    """Operations of a step with recomputation, SC21 equation 3."""
    inner = 1 + seq / (6 * hidden) + vocabulary / (16 * layers * hidden)
    return 96.0 * batch * seq * layers * hidden**2 * inner


def _model_flops(hidden: int, layers: int, batch: int, vocabulary: int = 51200, seq: int = 2048) -> float:
    """Operations of a step without recomputation, Korthikanti appendix A."""
    inner = 1 + seq / (6 * hidden) + vocabulary / (12 * layers * hidden)
    return 72.0 * batch * seq * layers * hidden**2 * inner


_SC21 = (  # billions, heads, hidden, layers, tp, stages, devices, batch, TFLOP/s, micro-batch, chunks
    ("1.7B", 24, 2304, 24, 1, 1, 32, 512, 137, 16, 1),
    ("3.6B", 32, 3072, 30, 2, 1, 64, 512, 138, 16, 1),
    ("7.5B", 32, 4096, 36, 4, 1, 128, 512, 142, 16, 1),
    ("18.4B", 48, 6144, 40, 8, 1, 256, 1024, 135, 8, 1),
    ("39.1B", 64, 8192, 48, 8, 2, 512, 1536, 138, 4, 1),
    ("76.1B", 80, 10240, 60, 8, 4, 1024, 1792, 140, 2, 3),
    ("145.6B", 96, 12288, 80, 8, 8, 1536, 2304, 148, 2, 2),
    ("310.1B", 128, 16384, 96, 8, 16, 1920, 2160, 155, 1, 2),
    ("529.6B", 128, 20480, 105, 8, 35, 2520, 2520, 163, 1, 3),
    ("1008B", 160, 25600, 128, 8, 64, 3072, 3072, 163, 1, 1),
)
_SC21_TABLE_2 = (  # name, heads, hidden, layers, stages (0: ZeRO-3), devices, batch, TFLOP/s, micro-batch
    ("174.6B ZeRO-3", 96, 12288, 96, 0, 384, 1536, 144, 4),
    ("174.6B ZeRO-3", 96, 12288, 96, 0, 768, 1536, 88, 2),
    ("174.6B ZeRO-3", 96, 12288, 96, 0, 1536, 1536, 44, 1),
    ("529.6B ZeRO-3", 128, 20480, 105, 0, 640, 2560, 138, 4),
    ("529.6B ZeRO-3", 128, 20480, 105, 0, 1120, 2240, 98, 2),
    ("529.6B ZeRO-3", 128, 20480, 105, 0, 2240, 2240, 48, 1),
    ("174.6B PTD-P", 96, 12288, 96, 12, 384, 1536, 153, 1),
    ("174.6B PTD-P", 96, 12288, 96, 12, 768, 1536, 149, 1),
    ("174.6B PTD-P", 96, 12288, 96, 12, 1536, 1536, 141, 1),
    ("529.6B PTD-P", 128, 20480, 105, 35, 560, 2240, 171, 1),
    ("529.6B PTD-P", 128, 20480, 105, 35, 1120, 2240, 167, 1),
    ("529.6B PTD-P", 128, 20480, 105, 35, 2240, 2240, 159, 1),
)
_KORTHIKANTI = (  # name, heads, hidden, layers, stages, chunks, batch, micro-batch, full s, selective s
    ("22B", 64, 6144, 48, 1, 1, 4, 4, 1.42, 1.10),
    ("175B", 96, 12288, 96, 8, 3, 64, 1, 18.13, 13.75),
    ("530B", 128, 20480, 105, 35, 3, 280, 1, 49.05, 37.83),
    ("1T", 160, 25600, 128, 64, 1, 512, 1, 94.42, 71.49),
)
_MPT = {"125m": (768, 12, 12), "350m": (1024, 24, 16), "760m": (1536, 24, 12), "1b": (2048, 24, 16),
        "3b": (2560, 32, 20), "7b": (4096, 32, 32), "13b": (5120, 40, 40), "30b": (7168, 48, 56),
        "70b": (8192, 80, 64)}  # fmt: skip
_BIG = (  # source, hidden, layers, heads, vocabulary, gpu, devices, tp, stages, batch, micro, ZeRO, TFLOP/s
    ("OPT 175B", 12288, 96, 96, 50272, "a100-80gb", 992, 8, 1, 992, 8, 3, 147),
    ("FSDP 175B", 12288, 96, 96, 50000, "a100-80gb", 128, 1, 1, 128, 1, 3, 173),
    ("FSDP 175B", 12288, 96, 96, 50000, "a100-80gb", 512, 1, 1, 1024, 2, 3, 186),
    ("BLOOM 176B", 14336, 70, 112, 250880, "a100-80gb", 384, 4, 12, 2048, 2, 1, 156),
    ("GPT-NeoX 20B", 6144, 44, 64, 50432, "a100-40gb", 96, 2, 4, 1536, 4, 1, 117),
)
_FOUNDRY = (  # gpu, model, seq, devices, micro-batch, accumulation, checkpointing, tokens/s/device
    ("h100-80gb", "1b", 2048, 8, 14, 1, False, 45455),
    ("h100-80gb", "7b", 2048, 8, 6, 1, False, 10643),
)
_FOUNDRY_MORE = (
    ("h100-80gb", "70b", 2048, 64, 8, 4, True, 1039),
    ("h100-80gb", "70b", 2048, 32, 2, 16, True, 882),
    ("h100-80gb", "30b", 8192, 8, 1, 21, True, 1384),
    ("h100-80gb", "30b", 2048, 32, 14, 3, True, 2308),
    ("h100-80gb", "30b", 2048, 8, 3, 21, True, 2002),
    ("h100-80gb", "13b", 32768, 8, 1, 3, True, 1976),
    ("h100-80gb", "13b", 4096, 8, 10, 3, True, 4717),
    ("h100-80gb", "13b", 2048, 64, 2, 1, False, 4800),
    ("h100-80gb", "13b", 2048, 8, 2, 1, False, 4792),
    ("h100-80gb", "7b", 8192, 8, 8, 2, True, 6935),
    ("h100-80gb", "3b", 16384, 8, 1, 6, False, 11152),
    ("h100-80gb", "3b", 4096, 8, 5, 6, False, 20964),
    ("h100-80gb", "3b", 2048, 64, 6, 3, False, 22525),
    ("h100-80gb", "3b", 512, 8, 40, 6, False, 27965),
    ("h100-80gb", "1b", 8192, 8, 3, 4, False, 29157),
    ("h100-80gb", "1b", 2048, 64, 20, 1, False, 44402),
    ("h100-80gb", "760m", 2048, 32, 24, 1, False, 67971),
    ("a100-80gb", "70b", 2048, 64, 8, 4, True, 410),
    ("a100-80gb", "70b", 2048, 32, 2, 16, True, 373),
    ("a100-80gb", "30b", 8192, 8, 1, 21, True, 574),
    ("a100-80gb", "30b", 2048, 8, 3, 21, True, 916),
    ("a100-80gb", "13b", 32768, 8, 1, 3, True, 1016),
    ("a100-80gb", "13b", 4096, 8, 10, 3, True, 2060),
    ("a100-80gb", "13b", 2048, 8, 2, 3, False, 2262),
    ("a100-80gb", "7b", 8192, 8, 8, 2, True, 3206),
    ("a100-80gb", "7b", 2048, 8, 6, 2, False, 4641),
    ("a100-80gb", "3b", 2048, 8, 10, 2, False, 10811),
    ("a100-80gb", "3b", 512, 8, 40, 6, False, 12127),
    ("a100-80gb", "1b", 8192, 8, 3, 4, False, 13814),
    ("a100-80gb", "1b", 2048, 8, 14, 4, False, 20513),
    ("a100-80gb", "760m", 2048, 8, 24, 2, False, 32434),
    ("a100-80gb", "350m", 2048, 8, 32, 2, False, 58782),
    ("a100-80gb", "125m", 2048, 8, 32, 2, False, 141737),
    ("a100-40gb", "70b", 2048, 128, 4, 1, True, 376),
    ("a100-40gb", "30b", 2048, 128, 6, 1, True, 865),
    ("a100-40gb", "13b", 2048, 128, 16, 1, True, 1972),
    ("a100-40gb", "7b", 2048, 128, 18, 1, True, 3623),
    ("a100-40gb", "7b", 2048, 8, 12, 4, True, 3679),
    ("a100-40gb", "3b", 2048, 128, 6, 1, False, 9538),
)


def _sc21_rows() -> list[Row]:
    rows = []
    for name, heads, hidden, layers, tp, stages, devices, batch, tflops, micro, chunks in _SC21:
        rows.append(
            Row(
                source="SC21 table 1",
                name=f"{name}, {devices} GPUs",
                gpu="a100-80gb",
                config=gpt(hidden, layers, heads),
                seq=2048,
                layout=_layout(devices, tp, stages, batch, micro, stage=0, checkpointing=True),
                practice=replace(MEGATRON, pipeline_stages=stages, virtual_stages=chunks),
                step_s=_sc21_flops(hidden, layers, batch) / (tflops * 1e12 * devices),
            )
        )
    for name, heads, hidden, layers, stages, devices, batch, tflops, micro in _SC21_TABLE_2:
        zero = stages == 0
        rows.append(
            Row(
                source="SC21 table 2",
                name=f"{name}, {devices} GPUs",
                gpu="a100-80gb",
                config=gpt(hidden, layers, heads),
                seq=2048,
                layout=_layout(
                    devices,
                    1 if zero else 8,
                    stages or 1,
                    batch,
                    micro,
                    stage=3 if zero else 0,
                    checkpointing=True,
                ),
                practice=replace(
                    MEGATRON, pipeline_stages=stages or 1, gathers="module", shares_ports=not zero
                ),
                step_s=_sc21_flops(hidden, layers, batch) / (tflops * 1e12 * devices),
            )
        )
    return rows


def _korthikanti_rows() -> list[Row]:
    rows = []
    for name, heads, hidden, layers, stages, chunks, batch, micro, full_s, selective_s in _KORTHIKANTI:
        staged = replace(MEGATRON, pipeline_stages=stages, virtual_stages=chunks)
        selective = replace(staged, recompute="attention", sequence_parallel=True)
        for practice, step_s, what in ((staged, full_s, "full"), (selective, selective_s, "selective")):
            rows.append(
                Row(
                    source="Korthikanti table 5",
                    name=f"{name}, {what} recomputation",
                    gpu="a100-80gb",
                    config=gpt(hidden, layers, heads),
                    seq=2048,
                    layout=_layout(8 * stages, 8, stages, batch, micro, stage=0, checkpointing=True),
                    practice=practice,
                    step_s=step_s,
                )
            )
    return rows


def _foundry_rows(table: tuple[tuple[str, str, int, int, int, int, bool, int], ...]) -> list[Row]:
    rows = []
    for gpu, name, seq, devices, micro, accumulation, checkpointing, rate in table:
        hidden, layers, heads = _MPT[name]
        rows.append(
            Row(
                source="llm-foundry",
                name=f"{name}, seq {seq}, {devices} GPUs, micro-batch {micro}",
                gpu=gpu,
                config=gpt(hidden, layers, heads, 50368, seq),
                seq=seq,
                layout=_layout(
                    devices,
                    1,
                    1,
                    micro * accumulation * devices,
                    micro,
                    stage=3,
                    checkpointing=checkpointing,
                ),
                practice=replace(FSDP, recompute="full" if checkpointing else "none"),
                step_s=seq * micro * accumulation / rate,
            )
        )
    return rows


def _titan_row(devices: int, rate: int, *, compiled: bool) -> Row:
    how = "compiled" if compiled else "not compiled"
    return Row(
        source="torchtitan",
        name=f"Llama-3.1-8B, seq 8192, {devices} GPUs, {how}",
        gpu="h100-80gb",
        config=LLAMA_8B,
        seq=8192,
        layout=_layout(devices, 1, 1, 2 * devices, 2, stage=3, checkpointing=True),
        practice=replace(FSDP, recompute="half", fused_elementwise=compiled),
        step_s=8192 * 2 / rate,
    )


def _megatron_rows() -> list[Row]:
    """The README: tensor-parallel communication runs beside computation (--tp-comm-overlap)."""
    found = []
    for devices, mfu in ((96, 0.47), (4608, 0.42)):
        hidden, layers, vocabulary, seq, batch = 12288, 96, 131072, 4096, 1152
        practice = replace(
            FSDP, sequence_parallel=True, tensor_parallel_overlap=True, pipeline_stages=12, virtual_stages=8,
            reduce_bytes=2,
        )  # fmt: skip
        found.append(
            Row(
                source="Megatron-LM",
                name=f"GPT-3 175B, {devices} GPUs",
                gpu="h100-80gb",
                config=gpt(hidden, layers, 96, vocabulary, seq),
                seq=seq,
                layout=_layout(devices, 8, 12, batch, 1, stage=1, checkpointing=False),
                practice=practice,
                step_s=_model_flops(hidden, layers, batch, vocabulary, seq) / (mfu * 989e12 * devices),
            )
        )
    return found


def _other_rows() -> list[Row]:
    """Runs of other papers, none of which had a part in the fit. Operations are counted as each paper does."""
    slower = ((8, 5762, False), (128, 5605, False), (128, 6514, True))
    titan = [_titan_row(devices, rate, compiled=compiled) for devices, rate, compiled in slower]
    return [*_big_gpts(), *_mt_nlg(), *_llama_3(), *_korthikanti_with_data(), *titan]


def _korthikanti_with_data() -> list[Row]:
    """530B as in table 5, eight times side by side; of full recomputation the paper tells the utilisation."""
    full_s = _model_flops(20480, 105, 2240) / (0.421 * 312e12 * 2240)
    alone = [row for row in _korthikanti_rows() if row.name.startswith("530B")]
    layout = _layout(2240, 8, 35, 2240, 1, stage=0, checkpointing=True)
    return [
        replace(row, source="Korthikanti 6.3", name=f"{row.name}, 2240 GPUs", layout=layout, step_s=step_s)
        for row, step_s in zip(alone, (full_s, 39.15), strict=True)
    ]


def _big_gpts() -> list[Row]:
    found = []
    for (
        source,
        hidden,
        layers,
        heads,
        vocabulary,
        gpu,
        devices,
        tp,
        stages,
        batch,
        micro,
        stage,
        tflops,
    ) in _BIG:
        is_fsdp = stage == 3 and tp == 1
        found.append(
            Row(
                source=source,
                name=f"{devices} GPUs, micro-batch {micro}",
                gpu=gpu,
                config=gpt(hidden, layers, heads, vocabulary),
                seq=2048,
                layout=_layout(devices, tp, stages, batch, micro, stage=stage, checkpointing=True),
                # FSDP's own runs are of plain PyTorch: every operation by itself.
                practice=replace(
                    MEGATRON,
                    attention="eager" if is_fsdp else "fused",
                    fused_elementwise=not is_fsdp,
                    pipeline_stages=stages,
                ),
                step_s=_sc21_flops(hidden, layers, batch, vocabulary) / (tflops * 1e12 * devices),
            )
        )
    return found


def _mt_nlg() -> list[Row]:
    return [
        Row(
            source="MT-NLG",
            name=f"530B, {devices} GPUs",
            gpu="a100-80gb",
            config=gpt(20480, 105, 128),
            seq=2048,
            layout=_layout(devices, 8, 35, 1920, 1, stage=0, checkpointing=True),
            practice=replace(MEGATRON, pipeline_stages=35),
            step_s=step_s,
        )
        for devices, step_s in ((2240, 60.1), (2800, 50.2), (3360, 44.4))
    ]


def _llama_3() -> list[Row]:
    """8 chunks a stage are assumed: the paper says that its pipeline is interleaved, not how often. Its tensor
    parallelism is that of Korthikanti (section 3.3.2), which divides the sequence too."""
    found = []
    for devices, tflops in ((8192, 430), (16384, 400)):
        seq, batch, hidden, layers = 8192, 2048, 16384, 126
        flops = (6 * 403e9 + 12.0 * layers * hidden * seq) * batch * seq
        found.append(
            Row(
                source="Llama 3",
                name=f"405B, {devices} GPUs",
                gpu="h100-80gb",
                config=LLAMA_405B,
                seq=seq,
                layout=_layout(devices, 8, 16, batch, 1, stage=1, checkpointing=False),
                practice=replace(FSDP, sequence_parallel=True, pipeline_stages=16, virtual_stages=8),
                step_s=flops / (tflops * 1e12 * devices),
            )
        )
    return found


ROWS: list[Row] = [*_sc21_rows(), *_korthikanti_rows(), *_foundry_rows(_FOUNDRY),
                   _titan_row(8, 6667, compiled=True), *_megatron_rows()]  # fmt: skip
"""The rows whose error is bounded by a test."""
OTHER_ROWS: list[Row] = _other_rows()
"""Never fitted, and found when all constants were what they are."""
MORE_ROWS: list[Row] = _foundry_rows(_FOUNDRY_MORE)
"""Further rows; those with an odd index had no part in the fit."""
