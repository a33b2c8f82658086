"""The README says what the code says."""

import readme_tables


def test_every_table_of_the_readme_is_what_the_code_has_now() -> None:
    text = readme_tables.README.read_text()
    assert text == readme_tables.filled(text), "run python deploy/readme_tables.py"


def test_every_setting_metric_error_and_route_has_a_meaning() -> None:
    for name, table in readme_tables.TABLES.items():
        rows = table().splitlines()[2:]
        assert rows, name
        assert all(cell.strip() for row in rows for cell in row.strip("| ").split(" | ")[-1:]), name
        assert "something else" not in "".join(row for row in rows if "internal_error" not in row), name
