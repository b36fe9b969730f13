"""Options of a verb from a pydantic model: each option is declared once, as a field.

    class DetoxOptions(StrictConfig):
        folder: Annotated[Path, typer.Argument(help="the grafted folder")]
        samples: Annotated[PositiveInt, typer.Option(help="responses per prompt")] = 25
        end: bool = True  # without typer's annotation: a recipe key, and no option

    @verb(app, example="otter bench detox grafted")
    def detox(options: DetoxOptions, out: Annotated[Path | None, ...] = None) -> Outcome:

The field gives the option's name (`--samples`), type, default, help and panel. `verb` calls
`expand_models`, so the function gets the validated model. A verb may take several models, and
fields without an option may be in them. With `options: PairsOptions | RunOptions` the verb takes
the options of both models, and gets the first whose required options are given.
"""

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from copy import copy
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from typer.models import ArgumentInfo, OptionInfo

from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo

    Models = tuple[type[BaseModel], ...]


def expand_models(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with a keyword parameter per option in place of each parameter that is a model.

    Returns `function` itself where no parameter is a model. Values that a model refuses raise
    OtterError with the option's name.
    """
    signature = inspect.signature(function, eval_str=True)
    models = {
        name: found
        for name, parameter in signature.parameters.items()
        if (found := _models_of(parameter.annotation))
    }
    if not models:
        return function

    @functools.wraps(function)
    def command(**arguments: Any) -> Any:
        options = {name: _build(alternatives, arguments) for name, alternatives in models.items()}
        others = {k: v for k, v in arguments.items() if k in signature.parameters}
        return function(**options, **others)

    parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in signature.parameters.items():
        expanded = _parameters(models[name]) if name in models else [parameter]
        parameters |= {each.name: each for each in expanded}
    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters.values()]
    # inspect and typer look here first; functools.wraps has copied the rest.
    command.__signature__ = signature.replace(parameters=keyword_only)  # type: ignore[attr-defined]
    return command


def _models_of(annotation: Any) -> "Models":
    """The model, or the models of a union; nothing for another type."""
    union = get_origin(annotation) in (Union, UnionType)
    kinds = get_args(annotation) if union else (annotation,)
    return tuple(kind for kind in kinds if hasattr(kind, "model_fields"))


def _option_fields(model: "type[BaseModel]") -> "dict[str, FieldInfo]":
    return {name: field for name, field in model.model_fields.items() if _typer_info(field)}


def _typer_info(field: "FieldInfo") -> ArgumentInfo | OptionInfo | None:
    return next((m for m in field.metadata if isinstance(m, ArgumentInfo | OptionInfo)), None)


def _parameters(models: "Models") -> list[inspect.Parameter]:
    """A parameter per option, required ones first, then in the order of the last model. An option
    that only some of the models require is optional."""
    fields: dict[str, FieldInfo] = {}
    for model in reversed(models):
        for name, field in _option_fields(model).items():
            fields.setdefault(name, field)
    needed = [{n for n, f in _option_fields(m).items() if f.is_required()} for m in models]
    required = {name for name in fields if all(name in names for names in needed)}
    ordered = sorted(fields, key=lambda name: name not in required)
    parameters = []
    for name in ordered:
        # The last model is the one without a special option; its own needs are said in the help.
        unless = " and ".join(_option_names(names - needed[-1]) for names in needed[:-1])
        some = name in needed[-1] and name not in required
        parameters.append(
            _parameter(name, fields[name], name in required, f"required without {unless}" * some)
        )
    return parameters


def _parameter(
    name: str, field: "FieldInfo", required: bool, remark: str = ""
) -> inspect.Parameter:
    info = copy(_typer_info(field))
    if info is not None and remark:
        info.help = f"{info.help} ({remark})"
    # Inside Annotated, typer reads the first name of an option from `default`.
    if isinstance(info, OptionInfo) and info.default is ...:
        info.default = _option_name(name)
    kind = _plain_type(field.annotation)
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if (default is None and not required) or default == ():
        kind, default = kind | None, None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else default,
        annotation=Annotated[kind, info],
    )


def _plain_type(kind: Any) -> Any:
    """The type as typer reads it: without constraints, and `tuple[X, ...]` as a list."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _plain_type(arguments[0])
    if origin is tuple:
        return list[_plain_type(arguments[0])]  # type: ignore[misc]
    if origin in (Union, UnionType):
        return functools.reduce(operator.or_, map(_plain_type, arguments))
    return kind


def _option_name(field: str) -> str:
    return "--" + field.replace("_", "-")


def _build(models: "Models", arguments: Mapping[str, Any]) -> "BaseModel":
    """The first model whose required options are given. Options that were left out take the
    model's default."""
    from pydantic import ValidationError

    given = {k: v for k, v in arguments.items() if v is not None and v != []}
    missing: list[str] = []
    for model in models:
        missing = [
            _option_name(name)
            for name, field in _option_fields(model).items()
            if field.is_required() and name not in given
        ]
        if missing:
            continue
        try:
            return model(**{k: given[k] for k in _option_fields(model) if k in given})
        except ValidationError as error:
            raise _option_error(error, model) from None
    raise OtterError(f"this needs {', '.join(missing)}", hint=_other_ways(models))


def _other_ways(models: "Models") -> str:
    *others, last = ({n for n, f in _option_fields(m).items() if f.is_required()} for m in models)
    return " or ".join(f"or give {_option_names(names - last)}" for names in others)


def _option_names(names: set[str]) -> str:
    return " ".join(map(_option_name, sorted(names)))


def _option_error(error: "ValidationError", model: "type[BaseModel]") -> OtterError:
    """The first value that was refused, under its option's name."""
    from otter_cli.core.strict_config import plain_message

    first = error.errors()[0]
    what = plain_message(first["msg"])
    if not first["loc"]:
        return OtterError(what, hint="--help shows the options")
    name = str(first["loc"][0])
    info = _typer_info(model.model_fields[name])
    option = info.default if info and isinstance(info.default, str) else _option_name(name)
    return OtterError(
        f"{option} {first['input']}: {what}",
        hint="--help shows the options",
    )
