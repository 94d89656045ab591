"""final_status as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def final_status(status: dsl.PipelineTaskFinalStatus, summary: dsl.Output[dsl.Markdown], title: str = "Pipeline"):
    """Write down what became of a pipeline's steps, as its exit handler; nothing is sent anywhere.

    Args:
        status: The engine's word on the steps: state, run, and the error where one failed.
        title: Title of the summary.

    Returns:
        summary: State, run and error, for people.
    """
    return launch("final_status")
