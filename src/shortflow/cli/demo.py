"""`shortflow demo`."""

from pathlib import Path
from typing import Annotated

import typer

from shortflow.cli.common import Settings, say
from shortflow.cli.progress import progress
from shortflow.cli.resuming import check_same
from shortflow.cli.training import trained

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Directory of the demo.")] = Path("out/demo"),
    recipe: Annotated[str, typer.Option(help="Recipe to train.")] = "esc",
    settings: Settings = None,
) -> None:
    """Train one-step digits in minutes and show them.

    Beside them stand samples in 2, 4, 8 and 128 steps and held-out digits, with their figures.

    Given again, it goes on where it was stopped.
    """
    from shortflow import hub, runs
    from shortflow.evaluate import write_record
    from shortflow.times import Dyadic
    from shortflow.train.state import latest_state

    resume = (out / "run.yaml").is_file() and latest_state(out / "state") is not None
    if resume:
        run, dataset = runs.open_run(out)
        check_same(out, run, recipe)
        say(f"{out} holds this demo already; going on with it as it was started.")
    else:
        run, dataset = runs.configure(recipe, "digits", settings=settings or ())
    trained(run, dataset, out, resume)
    model = hub.load(out)
    law = run.recipe.objective.times
    steps = [1, 2, 4, 8, law.steps if isinstance(law, Dyadic) else 128]  # shortcut models know no smaller step
    say("\nScoring 1,000 samples per number of steps …")
    with progress("sampling steps", title="scoring") as shown:
        record = runs.score(model, steps, report=shown)
    write_record(out / "evaluation.json", record)
    runs.comparison_picture(model, steps, out / "samples.png")
    say(runs.score_table(record))
    for line in runs.verdict(record):
        say(line)
    say(f"\nThe picture: {out / 'samples.png'}\nThe record:  {out / 'evaluation.json'}")
    say(f"More:        shortflow sample {out} --steps 1 --class 3 --out threes.png")
