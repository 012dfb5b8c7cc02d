import math

from cmml_ros.config import MeasurementConfig
from cmml_ros.measurement.defect import Measurement, Status
from cmml_ros.measurement.measure import is_flat


def spot(status: Status, bound_m3: float) -> Measurement:
    """A spot of 10 mm: 78.5 mm2, and 39.3 mm3 if it were the cap of an airhole 1 mm deep."""
    area_m2 = math.pi * 0.005**2
    return Measurement(
        area_status=Status.MEASURED,
        volume_status=status,
        area_m2=area_m2,
        equivalent_diameter_m=0.010,
        volume_upper_bound_m3=bound_m3,
    )


def test_paint_is_flat_and_an_unseen_depth_is_not():
    config = MeasurementConfig()
    assert is_flat(spot(Status.BELOW_DETECTION_LIMIT, 39e-9), config)
    assert not is_flat(spot(Status.BELOW_DETECTION_LIMIT, 40e-9), config)
    assert not is_flat(spot(Status.BELOW_DETECTION_LIMIT, math.nan), config)
    assert not is_flat(spot(Status.NO_POINTS, math.nan), config)
    assert not is_flat(spot(Status.MEASURED, 1e-9), config)
