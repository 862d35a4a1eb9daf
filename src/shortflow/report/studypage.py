"""A study."""
from shortflow.report.blocks import Section
from shortflow.report.files import Study
def study_sections(study: Study, name: str) -> list[Section]:
    return []
