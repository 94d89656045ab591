"""final_status as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def final_status(status: dsl.PipelineTaskFinalStatus, summary: dsl.Output[dsl.Markdown], title: str = "Pipeline"):
    """Write a summary of a finished pipeline, as its exit handler. Nothing is sent anywhere.

    Args:
        status: The pipeline's final status: state, run, and the error if a step failed.
        title: Title of the summary.

    Returns:
        summary: State, run and error as Markdown.
    """
    return launch("final_status")
