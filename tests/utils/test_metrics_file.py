from fasegr.utils.metrics_file import read_metrics


def test_what_is_no_line_of_metrics_is_left_out_with_a_warning(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    path.write_bytes(b'{"iteration": 1, "a": 2}\n[1]\n{"a": 3}\n\xff\xfe\n\n{"iteration": 2, "a"')
    with caplog.at_level("WARNING"):
        assert read_metrics(path) == [{"iteration": 1, "a": 2}]
    assert "line 2, 3, 4, 6" in caplog.text


def test_other_json_is_no_line_and_one_warning(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    path.write_text("[" * 10**5 + '\n{"iteration": true}\n{"iteration": ' + "1" * 5000 + "}\n" + "[\n1\n]\n" * 1000)
    assert read_metrics(path) == []
    assert len(caplog.records) == 1
    assert "line 1, 2, 3, 4, 5 and 2998 more" in caplog.text


def test_no_file_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / "metrics.json") == []
