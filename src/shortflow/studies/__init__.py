"""Studies: variants of a method compared at equal budget over several seeds, with the error that figures have.

study       what is compared: a YAML file or a command     planning    every variant as a run; OUT/study.yaml
cells       one run each: trained, scored, resumed         working     a process that makes cells
scheduling  workers here or on a cluster                   statistics  standard errors, paired tests, Holm's rule
results     OUT/results.json                               verdict, tables      what they allow to say; OUT/table.md

for state in compare("systems", "out/systems", jobs=2):
    ...
"""

from shortflow.studies.cells import Cell, look
from shortflow.studies.planning import StudyPlan, begin, cell_directory, plan, read_plan
from shortflow.studies.results import read_results, results, write_results
from shortflow.studies.scheduling import LocalWorkers, SlurmWorkers, State, compare, threads_of
from shortflow.studies.study import Budget, Study, Variant, load_study, ready_studies, study_of
from shortflow.studies.variants import Planned
from shortflow.studies.working import tied, work

__all__ = [
    "Budget",
    "Cell",
    "LocalWorkers",
    "Planned",
    "SlurmWorkers",
    "State",
    "Study",
    "StudyPlan",
    "Variant",
    "begin",
    "cell_directory",
    "compare",
    "load_study",
    "look",
    "plan",
    "read_plan",
    "read_results",
    "ready_studies",
    "results",
    "study_of",
    "threads_of",
    "tied",
    "work",
    "write_results",
]
