"""The search for operators whose deployed form differs: reproducible, resumable, and short here.

``XVOLUTION_FUZZ_CASES`` is the number of cases that are checked.
"""

import json
import os

import pytest
import torch

from benchmarks import fuzz

CASES = int(os.environ.get("XVOLUTION_FUZZ_CASES", "120"))


def test_random_operators_deploy_exactly():
    outcome = fuzz.check(map(fuzz.Case.draw, range(CASES)))
    assert not outcome.failures
    assert outcome.cases == CASES


def test_a_case_is_drawn_from_its_number_alone():
    first, second = fuzz.Case.draw(17), fuzz.Case.draw(17)
    assert first == second != fuzz.Case.draw(18)
    for a, b in zip(first.operator().state_dict().values(), second.operator().state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(first.inputs(), second.inputs())


def test_a_search_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "BLOCK", 4)
    path = tmp_path / "fuzz.jsonl"
    assert fuzz.run(8, path).cases == 8
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:20]]) + "\n")
    checked = []
    check = fuzz.check
    monkeypatch.setattr(fuzz, "check", lambda cases: check(checked.append(case.seed) or case for case in cases))
    total = fuzz.run(12, path)
    assert checked == list(range(4, 12))
    assert total.cases == 12
    assert [json.loads(line)["first"] for line in path.read_text().splitlines() if line.endswith("}")] == [0, 4, 8]


def test_what_differs_is_kept_with_its_number(tmp_path, monkeypatch):
    monkeypatch.setitem(fuzz.ALLOWED, torch.float64, -1.0)
    total = fuzz.run(2, tmp_path / "fuzz.jsonl")
    assert set(total.failures) == {"0", "1"}
    assert "Case(seed=0" in total.failures["0"]
    monkeypatch.setattr("sys.argv", ["fuzz", "--cases", "2", "--output", str(tmp_path / "fuzz.jsonl")])
    with pytest.raises(SystemExit, match="case 0: "):
        fuzz.main()
