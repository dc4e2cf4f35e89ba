"""What can be given to ``model.fit(callbacks=[...])``."""

from tfkfac.callbacks.check_workers import CheckWorkers
from tfkfac.callbacks.curvature_monitor import CurvatureMonitor
from tfkfac.callbacks.gather_state import GatherState
from tfkfac.callbacks.stop_if_late import StopIfLate

__all__ = ["CheckWorkers", "CurvatureMonitor", "GatherState", "StopIfLate"]
