from dataclasses import replace

import pytest
from test_report_html import ENTRY, MEASUREMENT

from cmml_ros.measurement.uncertainty import Budget
from cmml_ros.report.summary import list_budgets


def test_budgets_are_deviations_by_origin_in_the_units_of_tables() -> None:
    budget = Budget(noise=(3e-9) ** 2, boundary=(4e-9) ** 2)
    entry = replace(ENTRY, measurement=replace(MEASUREMENT, volume_budget=budget))
    assert budget.std == pytest.approx(5e-9)
    listed = list_budgets([entry, replace(ENTRY, defect_id=2)])
    assert list(listed) == ['1']
    assert listed['1']['volume_mm3'] == {
        'noise': 3.0,
        'surface': 0.0,
        'scale': 0.0,
        'shape': 0.0,
        'patch': 0.0,
        'bias': 0.0,
        'boundary': 4.0,
        'calibration': 0.0,
    }
