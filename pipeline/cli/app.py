"""The commands of `tidecache`; what is heavy is imported by the command that needs it."""

import logging
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from storage_schemas.errors import (
    CacheCorruptError,
    MissingStageError,
    RecipeError,
    TidecacheError,
)

if TYPE_CHECKING:
    from pipeline.config.recipe import Recipe

_LOG = logging.getLogger("tidecache")
_CRON_FIELDS = 5
_FAILED_RUNS, _USER_ERROR, _CORRUPT_CACHE, _STOPPED = 1, 2, 3, 143


class _Commands(TyperGroup):
    """Turns what a user can mend into one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TidecacheError as error:
            _complain(str(error))
            code = _CORRUPT_CACHE if isinstance(error, CacheCorruptError) else _USER_ERROR
            raise typer.Exit(code) from error


app = typer.Typer(
    cls=_Commands,
    help="Distil a large teacher into a small diffusion model, from a cache of its answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (TOML).")]
CacheAddress = Annotated[str, typer.Argument(metavar="CACHE", help="A cache's folder or URL.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set one key, as in objective.type=calm."),
]
NoPrefect = Annotated[bool, typer.Option("--no-prefect", help="Run as a plain function.")]


def main() -> None:
    """The entry point."""
    app(prog_name="tidecache")


def _show_version(is_asked: bool) -> bool:
    if is_asked:
        typer.echo(_version())
        raise typer.Exit
    return is_asked


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    del version  # its callback has answered


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for all that it makes.")] = Path(
        "demo-output"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Smaller, for a first look.")] = False,
) -> None:
    """Run both stages of both pipelines on the bundled models and real text."""
    _require_stage_1("demo")
    from pipeline.demo.run import run_demo

    run_demo(output, quick=quick)


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    sample: Annotated[
        int, typer.Option(min=1, help="Tokenize at most so many records, and scale up.")
    ] = 2000,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="What the teacher reads in a second, for the hours.")
    ] = None,
    measure: Annotated[
        int, typer.Option(min=0, help="Load the teacher and score so many views, for both.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Before anything is spent: what a recipe and its neighbours will store, read and take."""
    if tokens_per_second is not None and tokens_per_second <= 0:
        raise typer.BadParameter(f"expected a throughput above 0, got {tokens_per_second}")
    if tokens_per_second is not None and measure:
        raise typer.BadParameter("expected one of --tokens-per-second and --measure")
    _require_stage_1("plan")
    loaded = _load(recipe, overrides)
    from pipeline.cli.plan import show_plan
    from pipeline.plan.plan import plan_json, plan_recipe

    made = plan_recipe(loaded, sample=sample, tokens_per_second=tokens_per_second, measure=measure)
    if as_json:
        typer.echo(plan_json(made))
    else:
        show_plan(made)


@app.command()
def teacher_cache(
    recipe: RecipeFile, overrides: Overrides = None, no_prefect: NoPrefect = False
) -> None:
    """Stage 1: ask the teacher, and commit its answers to the cache, shard by shard."""
    _require_stage_1("teacher-cache")
    loaded = _load(recipe, overrides)
    with _progress():
        if no_prefect:
            result = _teacher_cache_plain(loaded)
        else:
            _ensure_server(loaded.cache.path)
            from flows.call import call_teacher_cache

            result = _call(call_teacher_cache, recipe, overrides)
    _show(result)


@app.command()
def student_train(
    recipe: RecipeFile, overrides: Overrides = None, no_prefect: NoPrefect = False
) -> None:
    """Stage 2: train the student from the cache alone; no teacher is loaded."""
    loaded = _load(recipe, overrides)
    with _progress():
        if no_prefect:
            result = _student_train_plain(loaded)
        else:
            _ensure_server(loaded.train.output)
            from flows.call import call_student_train

            result = _call(call_student_train, recipe, overrides)
    _show(result)


@app.command()
def sweep(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep (TOML).")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Only compare what there is.")] = False,
    no_prefect: NoPrefect = False,
) -> None:
    """Stage 2 many times over one cache; then a table and a plot. Run again, it goes on."""
    if dry_run and table:
        raise typer.BadParameter("expected one of --dry-run and --table")
    from pipeline.cli.sweep import compare, list_runs, train_runs
    from pipeline.config.sweep import load_sweep
    from pipeline.sweep.expand import expand_sweep

    config = load_sweep(sweep)
    runs = expand_sweep(config)
    if dry_run:
        list_runs(runs)
        return
    failures: dict[str, str] = {}
    if not table:
        if not no_prefect:
            _ensure_server(config.output)
        with _progress():
            end = train_runs(config, runs, through_prefect=not no_prefect)
        failures = end.failures
        if end.stopped_in is not None:
            _stop(f"stopped in run {end.stopped_in}; run again to go on")
    compare(config.output, runs, failures)
    if failures:
        lines = [f"{name}: {error}" for name, error in failures.items()]
        _complain("\n  ".join([f"{len(failures)} of {len(runs)} runs failed:", *lines]))
        raise typer.Exit(_FAILED_RUNS)


@app.command()
def generate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A saved student: a folder, or a Hub name.")
    ],
    prompt: Annotated[str | None, typer.Option(help="One question; its response is shown.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Lines of JSON, each with 'prompt' or 'messages'.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the responses to --prompts go, as lines of JSON.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Response tokens at most, each.")] = 256,
    steps: Annotated[
        int | None, typer.Option(help="Unmasking steps a block; one a token without.")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(min=1, help="If the checkpoint has no recipe.json that says it.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Also keep each token at least this certain: fewer steps.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    remasking: Annotated[
        str, typer.Option(help="What stays in a step: low_confidence or random.")
    ] = "low_confidence",
    seed: Annotated[int, typer.Option(help="Of random numbers, where there are any.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Let a student write: to one prompt on the terminal, or to a file of them."""
    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("expected one of --prompt and --prompts")
    if output is not None and prompts is None:
        raise typer.BadParameter("--output needs --prompts")
    from pipeline.cli.generate import load, show_response, write_responses
    from pipeline.generate.decoding import Decoding, checked_remasking

    student = load(checkpoint, block_size=block_size, device=device, dtype=dtype)
    decoding = Decoding(
        max_new_tokens=max_new_tokens,
        block_size=student.block_size,
        steps_per_block=student.block_size if steps is None else steps,
        remasking=checked_remasking(remasking),
        threshold=threshold,
        temperature=temperature,
        seed=seed,
    )
    if prompt is not None:
        show_response(student, prompt, decoding)
    elif prompts is not None:
        write_responses(student, prompts, decoding, output=output, batch_size=batch_size)


@app.command()
def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A saved student: a folder, or a Hub name.")
    ],
    records: Annotated[
        list[Path] | None,
        typer.Option(help="Records nobody trained on: likelihood and accuracy by noise level."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="Tasks of lm-evaluation-harness, or the sets 'paper' and 'local'."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A file of JSON for all numbers.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of masks, for --records.")] = 1,
    max_records: Annotated[int | None, typer.Option(min=1, help="The first usable ones.")] = None,
    length: Annotated[int, typer.Option(min=1, help="Tokens a record is cut to.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions a task, at most.")] = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run code that the student writes.")
    ] = False,
    block_size: Annotated[
        int | None, typer.Option(min=1, help="If the checkpoint has no recipe.json that says it.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Score a student: held-out likelihood on records, and benchmarks."""
    if not records and not tasks:
        raise typer.BadParameter("expected --records, --tasks or both")
    from pipeline.cli.evaluate import evaluate_checkpoint

    evaluate_checkpoint(
        checkpoint,
        records=records or (),
        tasks=[name for word in tasks or () for name in word.split(",")],
        length=length,
        draws=draws,
        max_records=max_records,
        limit=limit,
        allow_code_execution=allow_code_execution,
        block_size=block_size,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        output=output,
    )


@app.command()
def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Folders of finished runs of stage 2.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the page, its plots and numbers.")],
    control: Annotated[
        str, typer.Option(metavar="RUN", help="The run to compare with, or auto: one of CE alone.")
    ] = "auto",
    cache: Annotated[
        list[str] | None,
        typer.Option(help="Cache of held-out records, for calibration, agreement and examples."),
    ] = None,
    records: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out records (.jsonl, .parquet), to score every student on."),
    ] = None,
    views: Annotated[int, typer.Option(min=1, help="Look at so many views of a cache.")] = 96,
    title: Annotated[str, typer.Option(help="The page's title.")] = "Distilled students",
) -> None:
    """Compare students on one HTML page; no teacher is loaded."""
    from pipeline.cli.report import make_report

    make_report(
        runs,
        output=output,
        control=control,
        caches=cache or [],
        records=records or [],
        max_views=views,
        title=title,
    )


@app.command()
def inspect(
    cache: CacheAddress,
    record: Annotated[str | None, typer.Option(help="Id of one record to look at.")] = None,
    view: Annotated[int | None, typer.Option(help="Which of its views (0 without).")] = None,
) -> None:
    """Show what a cache is and holds; with --record, what the teacher said of one view."""
    from pipeline.cli.look import show_cache, show_view

    if record is not None:
        show_view(cache, record, view or 0)
    elif view is not None:
        raise typer.BadParameter("--view needs --record")
    else:
        show_cache(cache)


@app.command()
def status(
    cache: CacheAddress,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show where a cache stands: shards, what is missing, what failed, who is at work."""
    from pipeline.cli.status import show_status

    show_status(cache, as_json=as_json)


@app.command()
def verify(
    cache: CacheAddress,
    fidelity: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Also let the teacher score N stored views again; the manifest keeps the figures.",
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check every file, count, mask and bound of a cache; exit code 3 if anything is wrong."""
    if overrides and fidelity is None:
        raise typer.BadParameter("--set needs --fidelity: it says where the teacher is")
    if fidelity is not None:
        _require_stage_1("verify --fidelity")
    from pipeline.cli.verify import show_verification

    if not show_verification(cache, num_views=fidelity, overrides=overrides or ()):
        _complain(f"{cache}: expected a sound cache, got the faults that are listed above")
        raise typer.Exit(_CORRUPT_CACHE)


@app.command()
def serve(
    recipe: RecipeFile,
    overrides: Overrides = None,
    cron: Annotated[str | None, typer.Option(help="When stage 1 runs: '0 2 * * *'.")] = None,
    interval: Annotated[float | None, typer.Option(help="Or every so many seconds.")] = None,
) -> None:
    """Serve both stages: stage 1 by a schedule, stage 2 whenever its cache is committed."""
    if (cron is None) == (interval is None):
        raise typer.BadParameter("expected one of --cron and --interval")
    if cron is not None and len(cron.split()) != _CRON_FIELDS:
        raise typer.BadParameter(
            f"expected a --cron of five fields as in '0 2 * * *', got {cron!r}"
        )
    if interval is not None and interval <= 0:
        raise typer.BadParameter(f"expected an --interval above 0 seconds, got {interval}")
    _require_stage_1("serve")
    loaded = _load(recipe, overrides)
    from flows.local import ensure_server

    ensure_server(_prefect_home(loaded.cache.path), scheduling=True)
    from flows.serve import serve_recipe

    serve_recipe(
        recipe,
        tuple(overrides or ()),
        cron=cron,
        interval=None if interval is None else timedelta(seconds=interval),
    )


def _require_stage_1(command: str) -> None:
    """The student's image leaves the teacher's code out (docker/student.Dockerfile)."""
    if find_spec("pipeline.teacher") is None:
        raise MissingStageError(
            f"expected the teacher's code for 'tidecache {command}', got an installation of stage "
            f"2 alone; run it in the teacher's image, or where all of tidecache is installed"
        )


def _load(recipe: Path, overrides: list[str] | None) -> "Recipe":
    from pipeline.config.recipe import load_recipe

    return load_recipe(recipe, overrides or ())


def _teacher_cache_plain(recipe: "Recipe") -> dict[str, Any]:
    from flows.progress import report_shards
    from flows.results import cache_result
    from flows.stop import stop_on_sigterm
    from pipeline.teacher_cache import run_teacher_cache

    if recipe.workers is not None:
        raise RecipeError(
            "expected no [workers] with --no-prefect: they are reached through Prefect, got "
            f"workers.type = {recipe.workers.type!r}; leave one of the two out"
        )
    with stop_on_sigterm() as stop:
        summary = run_teacher_cache(recipe, on_shard=report_shards(_LOG), should_stop=stop.is_set)
    if not summary.is_complete:
        _stop("stopped; what is committed is kept, run again to go on")
    return cache_result(summary)


def _student_train_plain(recipe: "Recipe") -> dict[str, Any]:
    from flows.progress import report_metrics
    from flows.results import train_result
    from flows.stop import stop_on_sigterm
    from pipeline.launch.start import train_student

    with stop_on_sigterm() as stop:
        summary = train_student(recipe, on_log=report_metrics(_LOG), should_stop=stop.is_set)
    if not summary.is_complete:
        _stop(f"stopped at step {summary.steps}; run again to go on")
    return train_result(summary)


def _ensure_server(address: str) -> None:
    from flows.local import ensure_server

    ensure_server(_prefect_home(address), is_quiet=sys.stderr.isatty())


def _prefect_home(address: str) -> Path:
    """Beside what is made; where that lies in an object store, in the current folder."""
    from pipeline.storage.address import local_folder

    return local_folder(address) / ".prefect"


def _call(
    flow: Callable[[Path, Sequence[str]], dict[str, Any]],
    recipe: Path,
    overrides: list[str] | None,
) -> dict[str, Any]:
    from flows.call import StoppedRun

    try:
        return flow(recipe, overrides or ())
    except StoppedRun as error:
        _stop(str(error))


@contextmanager
def _progress() -> Generator[None]:
    """A bar for a person, log lines for a file."""
    if sys.stderr.isatty():
        from flows.progress import on_terminal

        with on_terminal():
            yield
    else:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)  # each call of Prefect's client
        yield


def _show(result: dict[str, Any]) -> None:
    width = max(map(len, result))
    for name, value in result.items():
        typer.echo(f"{name:{width}}  {value}")


def _stop(message: str) -> NoReturn:
    _complain(message)
    raise typer.Exit(_STOPPED)


def _complain(message: str) -> None:
    from pipeline.cli.tables import printable

    typer.secho(printable(message), fg=typer.colors.RED, err=True)


def _version() -> str:
    try:
        return metadata.version("tidecache")
    except metadata.PackageNotFoundError:
        return "unknown"
