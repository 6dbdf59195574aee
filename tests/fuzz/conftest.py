"""Counts of what became of the inputs, after the tests."""

import os


def pytest_terminal_summary(terminalreporter):
    if "FUZZ" not in os.environ:
        return
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, [])]
    for report in reports:
        for kind, counts in dict(report.user_properties).get("fuzz", {}).items():
            ends = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items(), key=lambda c: -c[1]))
            terminalreporter.write_line(f"{kind}: {sum(counts.values())} inputs: {ends}")
