"""Reads `--param KEY=VALUE`, finds compiled pipelines, and shortens paths for display."""

from __future__ import annotations

from pathlib import Path

from stereo_core.arguments import at_home
from stereo_core.orchestration.dag import GraphError, Parameter, Pipeline, parse
from stereo_core.values import near


def read_params(pipeline: Pipeline, params: tuple[str, ...], complete: bool = True) -> dict[str, object]:
    """Parse `key=value` texts into values of the parameters' types; `@FILE` is replaced by the file's text.

    With `complete`, every parameter must have a value or a default.

    Raises:
        GraphError: one line per problem: no `=`, an unknown name, a name given twice, a wrong type, an unreadable file,
            a missing value.
    """
    values, complaints = {}, []
    for text in params:
        name, equals, value = text.partition("=")
        if not equals:
            complaints.append(f"--param {text}: expected KEY=VALUE")
        elif name not in pipeline.parameters:
            complaints.append(pipeline.unknown(name))
        elif name in values:
            complaints.append(f"parameter {name}: given twice; leave out one --param {name}=...")
        else:
            try:
                values[name] = _value(pipeline.parameters[name], value)
            except GraphError as error:
                complaints.append(str(error))
                values[name] = None  # given, although wrong: do not report it as missing
    complaints += filter(None, [pipeline.missing(values) if complete else ""])
    if complaints:
        raise GraphError("\n".join(complaints))
    return values


def _value(parameter: Parameter, text: str) -> object:
    file = text[1:] if text.startswith("@") else ""
    try:
        text = Path(at_home(file)).read_text(encoding="utf-8-sig") if file else at_home(text)
        return parse(parameter, text, file or "value")
    except (OSError, UnicodeDecodeError) as error:
        raise GraphError(f"--param {parameter.name}: {file}: {error}") from None
    except GraphError as error:
        hint = f"; --param {parameter.name}=@{text} reads that file" if not file and _is_file(text) else ""
        raise GraphError(f"--param {parameter.name}=@{file}: {error}" if file else f"{error}{hint}") from None


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name
        return False


def compiled_file(named: Path) -> Path:
    """The compiled file of a pipeline, named by its path or by the name of a pipeline of this library.

    Raises:
        GraphError: there is neither such a file nor such a pipeline.
    """
    if named.is_file() or named.suffix or len(named.parts) != 1:
        return named
    from stereo_core.orchestration.compile import compiled_path, pipeline_folders

    shipped = {folder.name: compiled_path(folder) for folder in pipeline_folders()}
    name = str(named).replace("-", "_")
    if name not in shipped:
        meant = near(name, shipped)
        hint = f"did you mean {meant}?" if meant else f"known: {', '.join(shipped)}"
        raise GraphError(f"{named}: no such file and no such pipeline; {hint}")
    return shipped[name]


def relative(path: Path) -> str:
    """The path relative to the current folder if it is inside it, otherwise unchanged."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
