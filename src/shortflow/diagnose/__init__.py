"""Diagnosis: what exact theory says about a data set before training, and about a trained model afterwards.

The instruments are in `shortflow.theory`; here they are pointed at data and runs, and what they say is collected.
"""

from shortflow.diagnose.ofdata import Looking, diagnose_data
from shortflow.diagnose.ofrun import diagnose_run
from shortflow.diagnose.record import FORMAT, Diagnosis, report_table

__all__ = ["FORMAT", "Diagnosis", "Looking", "diagnose_data", "diagnose_run", "report_table"]
