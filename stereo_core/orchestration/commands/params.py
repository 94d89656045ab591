"""`--param KEY=VALUE` and paths as the commands show them."""

from __future__ import annotations

from pathlib import Path

from stereo_core.orchestration.dag import GraphError, Pipeline, parse


def read_params(pipeline: Pipeline, params: tuple[str, ...], complete: bool = True) -> dict[str, object]:
    """`key=value` texts -> values of the parameters' types; `@FILE` stands for the file's text.

    With `complete`, every parameter must have a value or a default.

    Raises:
        GraphError: no `=`, an unknown name, a value of another type, an unreadable file.
    """
    values = {}
    for text in params:
        name, equals, value = text.partition("=")
        if not equals:
            raise GraphError(f"--param {text}: KEY=VALUE is wanted")
        if name not in pipeline.parameters:
            values[name] = value  # refused below, with the nearest name
            continue
        file = value[1:] if value.startswith("@") else ""
        try:
            value = Path(file).read_text(encoding="utf-8") if file else value
            values[name] = parse(pipeline.parameters[name], value, file or "value")
        except (OSError, UnicodeDecodeError) as error:
            raise GraphError(f"--param {name}: {file}: {error}") from None
        except GraphError as error:
            hint = f"; --param {name}=@{value} reads that file" if not file and Path(value).is_file() else ""
            raise GraphError(f"--param {name}=@{file}: {error}" if file else f"{error}{hint}") from None
    pipeline.arguments(values, complete)
    return values


def relative(path: Path) -> str:
    """The path below the current folder, where it is there."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
