"""`--param KEY=VALUE` and paths as the commands show them."""

from __future__ import annotations

from pathlib import Path

from stereo_core.orchestration.dag import GraphError, Parameter, Pipeline, parse
from stereo_core.values import near


def read_params(pipeline: Pipeline, params: tuple[str, ...], complete: bool = True) -> dict[str, object]:
    """`key=value` texts -> values of the parameters' types; `@FILE` stands for the file's text.

    With `complete`, every parameter must have a value or a default.

    Raises:
        GraphError: a line each for no `=`, an unknown name, a value of another type, an unreadable file, one missing.
    """
    values, complaints = {}, []
    for text in params:
        name, equals, value = text.partition("=")
        if not equals:
            complaints.append(f"--param {text}: KEY=VALUE is wanted")
        elif name not in pipeline.parameters:
            complaints.append(pipeline.unknown(name))
        else:
            try:
                values[name] = _value(pipeline.parameters[name], value)
            except GraphError as error:
                complaints.append(str(error))
                values[name] = None  # said, if wrongly: not to be told as missing
    complaints += filter(None, [pipeline.missing(values) if complete else ""])
    if complaints:
        raise GraphError("\n".join(complaints))
    return values


def _value(parameter: Parameter, text: str) -> object:
    file = text[1:] if text.startswith("@") else ""
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig") if file else text
        return parse(parameter, text, file or "value")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:  # RuntimeError: ~ of nobody
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
    """The file of a pipeline that is named by its file, or, where there is no such file, by the name of a shipped one.

    Raises:
        GraphError: a word that is neither.
    """
    if named.is_file() or named.suffix or len(named.parts) != 1:
        return named
    from stereo_core.orchestration.compile import compiled_path, pipeline_folders

    shipped = {folder.name: compiled_path(folder) for folder in pipeline_folders()}
    name = str(named).replace("-", "_")
    if name not in shipped:
        meant = near(name, shipped)
        hint = f"did you mean {meant}?" if meant else f"known: {', '.join(shipped)}"
        raise GraphError(f"{named}: no such file, and no pipeline of that name; {hint}")
    return shipped[name]


def relative(path: Path) -> str:
    """The path below the current folder, where it is there."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
