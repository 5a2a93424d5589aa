"""Apache Beam pipelines whose errors of bad input are raised as one line."""

from collections.abc import Iterator, Sequence
import contextlib
import re
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.stores import StoreError

_INPUT_ERROR = re.compile(r"(InputError|Rejected|StoreError|DiskFull): (.+?)(?: \[while running|$)", re.MULTILINE)
_NOT_FETCHED = re.compile(r"Unable to fetch remote [^:]+:[^:\s]+")  # programs that Flink, Spark and Prism need


def pipeline_options(runner: str, options: Sequence[str]) -> Any:
    """Beam's options for a runner, such as `DataflowRunner`.

    Args:
      options: flags of Beam or the runner, such as `--temp_location=gs://bucket/tmp`.

    Raises:
      InputError: apache-beam is not installed, or does not take the options.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions, TypeOptions
    except ImportError as error:
        raise InputError(f"runner {runner}: needs apache-beam ({error}); pip install 'diversity_jax[beam]'") from None
    try:
        parsed = PipelineOptions([f"--runner={runner}", *options])
    except (ValueError, TypeError, AttributeError) as error:
        raise _not_taken(runner, error) from None
    if runner == "DirectRunner":
        # Else Beam downloads the Prism runner and tries that first. No pipeline of this project has triggers.
        parsed.view_as(TypeOptions).allow_unsafe_triggers = True
    return parsed


@contextlib.contextmanager
def open_pipeline(runner: str, options: Any) -> Iterator[Any]:
    """A pipeline that runs at the end of the block; an input error of a worker is raised again as one line."""
    import apache_beam as beam

    try:
        pipeline = beam.Pipeline(options=options)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise _not_taken(runner, error) from None
    try:
        with pipeline:
            yield pipeline
    except Exception as error:  # runners wrap a worker's exception in one of their own
        message = _INPUT_ERROR.search(str(error))
        if message and not isinstance(error, InputError):
            kind = StoreError if message[1] in ("StoreError", "DiskFull") else InputError
            raise kind(message[2].strip().strip("'\"")) from error
        if missing := _NOT_FETCHED.search(str(error)):
            raise InputError(f"runner {runner}: {missing[0]}; fetch it and name it with Beam's own flags") from None
        raise


def _not_taken(runner: str, error: Exception) -> InputError:
    return InputError(f"runner {runner}: Apache Beam does not take it ({' '.join(str(error).split())})")
