"""publish_model as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def publish_model(
    model: dsl.Input[dsl.Model],
    card: dsl.Output[dsl.Markdown],
    metrics: dsl.Input[dsl.Metrics] = None,
    uri: str = "",
    title: str = "",
    existing: str = "refuse",
    max_epe_increase: float = 0.0,
):
    """Put a model, what lies beside it, its figures and a model card where others take it from.

    Args:
        model: A checkpoint, an ONNX file or an engine.
        metrics: Metrics of its evaluation.
        uri: Where to: a folder, or s3://bucket/prefix.
        title: Title of the model card; empty: the file's name.
        existing: What to do about another model that is published there: refuse to publish; replace it; compare:
            replace it unless epe has risen by more than max_epe_increase, which fails the step.
        max_epe_increase: px by which epe may have risen, with existing=compare.

    Returns:
        card: The model card: what the model is, its figures, and beside them those of the one before.
    """
    return launch("publish_model")
