"""Mistakes in batch scripts, found before the queue: in our own and in those of users.

Read `finding`, `parse`, then the tables of rules: `reading` (how sbatch and bash read the file),
`resources` (tasks, GPUs, memory), `ranks` (how the ranks find each other), `endings` (time limits,
signals, requeueing).
"""

from megatune.launch.slurm.lint.endings import ENDING_RULES
from megatune.launch.slurm.lint.finding import Finding, LintFacts, Rule
from megatune.launch.slurm.lint.parse import parse_script
from megatune.launch.slurm.lint.ranks import RANK_RULES
from megatune.launch.slurm.lint.reading import READING_RULES
from megatune.launch.slurm.lint.resources import RESOURCE_RULES

RULES: tuple[Rule, ...] = (*READING_RULES, *RESOURCE_RULES, *RANK_RULES, *ENDING_RULES)
_ORDER = {"error": 0, "warning": 1, "note": 2}


def lint_script(text: str, facts: LintFacts | None = None) -> list[Finding]:
    """Everything the rules find in the text of a batch script, the worst first."""
    script = parse_script(text)
    findings = [
        Finding(
            rule=rule.name,
            severity=rule.severity,
            line=hit.line,
            message=hit.message,
            fix=hit.fix or rule.fix,
        )
        for rule in RULES
        for hit in rule.check(script, facts or LintFacts())
    ]
    return sorted(findings, key=lambda finding: (_ORDER[finding.severity], finding.line or 0))


__all__ = ["RULES", "Finding", "LintFacts", "lint_script"]
