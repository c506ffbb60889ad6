"""The suite itself: every benchmark runs, and comes to a conclusion."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import BENCHMARKS, main

pytestmark = pytest.mark.benchmark


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [benchmark.NAME for benchmark in BENCHMARKS])
def test_a_benchmark_runs(name: str, tmp_path: Path) -> None:
    assert main(["--quick", "--only", name, "--into", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    figures = results["results"][name]
    assert figures
    assert all(entry["value"] is not None or entry["absent"] for entry in figures)
